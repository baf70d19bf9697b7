"""An import hook that checks the shapes of tensors wherever the package's functions exchange them.

`jaxtyping` has a hook of its own. It checks the arguments of every call twice, binds them by name,
and compiles every library again that a checked module imports, which took about half of the time of
all tests. This one checks the same annotations by the same rules.
"""

import ast
import dataclasses
import functools
import inspect
import sys
from importlib.machinery import PathFinder, SourceFileLoader
from types import ModuleType
from typing import Any

from beartype import beartype
from jaxtyping import AbstractArray
from jaxtyping._array_types import _FixedDim, _NamedDim, _NamedVariadicDim
from jaxtyping._storage import get_shape_memo, pop_shape_memo, push_shape_memo
from torch import Tensor

# Where tensors are. In plain Python code, pyrefly proves the types.
CHECKED = [
    f"seq2chat.{name}"
    for name in (
        *("nn", "models", "generation", "training", "alignment", "interpret", "course"),
        *("inference", "device", "text.batch", "text.masked", "text.parallel", "text.shards"),
        *("text.chat", "text.parts"),
    )
]


_slow_fits = type(AbstractArray).__instancecheck__
_plans: dict[type, "_Plan | None"] = {}


@dataclasses.dataclass
class _Plan:
    """An annotation such as "*shape 2 width": at most the first axis stands for several."""

    leading: str | None
    axes: list[str | int]
    kinds: set[tuple[type, Any]]  # types and dtypes of tensors that have fitted


def _plan_of(annotation: Any) -> _Plan | None:
    axes = list(annotation.dims)
    if any(getattr(axis, "broadcastable", True) for axis in axes):
        return None
    leading = axes.pop(0).name if axes and type(axes[0]) is _NamedVariadicDim else None
    if any(type(axis) not in (_NamedDim, _FixedDim) for axis in axes):
        return None
    return _Plan(leading, [getattr(axis, "name", None) or axis.size for axis in axes], set())


def _fits(annotation: Any, value: Any) -> bool:
    """`isinstance(value, annotation)`, quick for tensors that fit. The rest is left to jaxtyping,
    which also explains it."""
    plan = _plans.get(annotation)
    kind = (type(value), getattr(value, "dtype", None))
    if plan is None or kind not in plan.kinds:
        fits = _slow_fits(annotation, value)
        if fits and isinstance(value, Tensor):
            if annotation not in _plans:
                _plans[annotation] = plan = _plan_of(annotation)
            if plan:
                plan.kinds.add(kind)
        return fits
    sizes, variadic_sizes, *_ = get_shape_memo()
    shape = value.shape
    axes = plan.axes
    n_leading = len(shape) - len(axes)
    if n_leading < 0 or (n_leading and not plan.leading):
        return _slow_fits(annotation, value)
    leading = (False, shape[:n_leading])
    if plan.leading and variadic_sizes.get(plan.leading, leading) != leading:
        return _slow_fits(annotation, value)
    new = []
    for axis, size in zip(axes, shape[n_leading:] if n_leading else shape, strict=True):
        expected = sizes.get(axis) if type(axis) is str else axis
        if expected is None:
            sizes[axis] = size
            new.append(axis)
        elif expected != size:
            for name in new:
                del sizes[name]
            return _slow_fits(annotation, value)
    if plan.leading:
        variadic_sizes[plan.leading] = leading
    return True


def checked(definition: Any) -> Any:
    """Return the function, or the dataclass, with its arguments and its result checked."""
    if inspect.isclass(definition):
        if dataclasses.is_dataclass(definition) and "__init__" in vars(definition):
            definition.__init__ = checked(definition.__init__)
        return definition
    function = beartype(definition)
    annotations = str(list(definition.__annotations__.values()))
    if "jaxtyping" not in annotations:
        return function
    signature = inspect.signature(definition) if "{" in annotations else None

    @functools.wraps(definition)
    def call(*arguments, **options):
        """Compare the sizes of named axes within this call only."""
        named = {}
        if signature:  # an annotation such as "{n_query}" reads an argument
            bound = signature.bind(*arguments, **options)
            bound.apply_defaults()
            named = bound.arguments
        push_shape_memo(named)
        try:
            return function(*arguments, **options)
        finally:
            pop_shape_memo()

    return call


class _Decorate(ast.NodeTransformer):
    """Adds the decorator where it sees the annotations: innermost at functions, outermost at
    dataclasses."""

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        node.decorator_list.append(ast.copy_location(ast.Name("__checked__", ast.Load()), node))
        return self.generic_visit(node)

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        node.decorator_list.insert(0, ast.copy_location(ast.Name("__checked__", ast.Load()), node))
        return self.generic_visit(node)


class _Loader(SourceFileLoader):
    def get_code(self, fullname: str):
        """Return the decorated code, past the bytecode in the cache, which is not decorated."""
        path = self.get_filename(fullname)
        return self.source_to_code(self.get_data(path), path)

    def source_to_code(self, data, path, *, _optimize: int = -1):
        tree = ast.fix_missing_locations(_Decorate().visit(ast.parse(data, path)))
        return compile(tree, path, "exec", dont_inherit=True, optimize=_optimize)

    def exec_module(self, module: ModuleType) -> None:
        module.__dict__["__checked__"] = checked
        super().exec_module(module)


class _Finder:
    def find_spec(self, fullname: str, path=None, target=None):
        if not any(fullname == name or fullname.startswith(name + ".") for name in CHECKED):
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and isinstance(spec.loader, SourceFileLoader):
            spec.loader = _Loader(spec.loader.name, spec.loader.path)
        return spec


def check_shapes() -> None:
    """Check the modules that are imported from now on."""
    early = [name for name in CHECKED if name in sys.modules]
    assert not early, f"imported before they could be checked: {early}"
    sys.meta_path.insert(0, _Finder())
    type(AbstractArray).__instancecheck__ = _fits
