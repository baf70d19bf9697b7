"""Counts of how code and prose read, per tree: run it on this package and on its peers.

    python benchmarks/readability.py src/seq2chat PEER/src ... [--docs README.md docs PEER/docs ...]

The first table counts code: tokens per line, long lines, signatures. The second counts patterns in
docstrings and in Markdown without its code blocks, per 1,000 words. `--where PATTERN` prints each
match with its file, so that it can be rewritten.
"""

import argparse
import ast
import io
import re
import statistics
import tokenize
from collections.abc import Iterator
from pathlib import Path

PATTERNS = {
    "headless what": (
        r"(?:^|[.:;,(]\s+|\b(?:of|is|by|for|to|with|and|in|as|than|from|on|at) )what\b"
    ),
    "tells, asks": (
        r"\b(?:tells?|told|telling|says?|said|asks?|asked|stands?|stood|goes on|go on|going on"
        r"|knows?|knew|finds? out|begins? anew)\b"
    ),
    "preposition which": (
        r"\b(?:of|in|by|to|with|from|for|on|at|after|before|through|behind) (?:which|whom)\b"
    ),
    "that of": r"\b(?:that|those) of\b",
    "beside, behind": (
        r"\b(?:beside|besides|behind|anew|meanwhile|likeliest|thereby|wherever|whatever"
        r"|whichever|hereby)\b"
    ),
    "of ours": r"\bof (?:others|ours|one's own|his own|theirs|its own|yours)\b",
    "semicolon": r";",
    "headless start": r"(?m)\A(?:What|Whether|Of|Those|Who|How|That|Where|As|If)\b",
    "for example": r"\b(?:for example|e\.g\.|for instance|note)\b",
    "you": r"\b(?:you|your|yours)\b",
    "contraction": r"\b(?:(?:ca|do|does|is|are|wo|did|has)n't|it's|you're|let's)\b",
    "for a unit": r"\b(?:nats|tokens|bytes|one|seconds|bits|rows|pairs|answers) an? (?:token|line"
    r"|step|answer|prompt|epoch|second|batch|row|word|character|question|byte)\b",
}


def sources(tree: Path, suffix: str) -> Iterator[Path]:
    yield from [tree] if tree.is_file() else sorted(tree.rglob(f"*{suffix}"))


def code(tree: Path) -> dict[str, float]:
    """Counts over the Python files of `tree`."""
    tokens_per_line: list[int] = []
    lengths: list[int] = []
    parameters: list[int] = []
    n_lines = n_long = n_assignments = n_pairs = n_comments = 0
    skipped = {tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.COMMENT}
    for file in sources(tree, ".py"):
        text = file.read_text(encoding="utf-8")
        per_line: dict[int, int] = {}
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            n_comments += token.type == tokenize.COMMENT
            if token.type not in skipped and token.string and '"""' not in token.string:
                per_line[token.start[0]] = per_line.get(token.start[0], 0) + 1
        tokens_per_line += per_line.values()
        lines = text.splitlines()
        n_lines += len(lines)
        n_long += sum(len(line) > 100 for line in lines)
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Assign):
                n_assignments += 1
                n_pairs += isinstance(node.targets[0], ast.Tuple) and isinstance(
                    node.value, ast.Tuple
                )
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lengths.append((node.end_lineno or node.lineno) - node.lineno + 1)
                every = node.args.posonlyargs + node.args.args + node.args.kwonlyargs
                parameters.append(len([a for a in every if a.arg not in ("self", "cls")]))
    return {
        "tokens per line, mean": statistics.mean(tokens_per_line),
        "median": statistics.median(tokens_per_line),
        "p90": statistics.quantiles(tokens_per_line, n=10)[-1],
        "% lines > 100": 100 * n_long / n_lines,
        "% a, b = x, y": 100 * n_pairs / n_assignments,
        "comments / 100 lines": 100 * n_comments / len(tokens_per_line),
        "function median": statistics.median(lengths),
        "% >= 7 parameters": 100 * sum(n >= 7 for n in parameters) / len(parameters),
    }


def docstrings(tree: Path) -> Iterator[tuple[Path, int, str]]:
    """Yield file, line and text of each docstring."""
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for file in sources(tree, ".py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, kinds) and (text := ast.get_docstring(node)):
                yield file, getattr(node, "lineno", 1), text


def pages(tree: Path) -> Iterator[tuple[Path, int, str]]:
    """Yield file, line and text of each Markdown page, without code blocks."""
    for file in sources(tree, ".md"):
        text = file.read_text(encoding="utf-8")
        yield file, 1, re.sub(r"(?ms)^```.*?^```|`[^`\n]*`", "", text)


def prose(texts: list[tuple[Path, int, str]]) -> dict[str, float]:
    """Matches of each pattern per 1,000 words."""
    words = sum(len(text.split()) for _, _, text in texts)
    return {
        name: 1000 * sum(len(re.findall(p, text, re.I)) for _, _, text in texts) / max(1, words)
        for name, p in PATTERNS.items()
    }


def show(title: str, rows: dict[str, dict[str, float]]) -> None:
    names = list(next(iter(rows.values())))
    print(f"\n| {title} | {' | '.join(names)} |\n|{'---|' * (len(names) + 1)}")
    for tree, values in rows.items():
        print(f"| {tree} | {' | '.join(f'{values[name]:.1f}' for name in names)} |")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("trees", nargs="*", type=Path, help="folders of Python code")
    parser.add_argument("--docs", nargs="*", type=Path, default=[], help="Markdown files, folders")
    parser.add_argument("--where", metavar="PATTERN", help="print where this pattern matches")
    options = parser.parse_args()
    if options.where:
        places = [p for tree in options.trees for p in docstrings(tree)]
        places += [p for tree in options.docs for p in pages(tree)]
        for file, line, text in places:
            for match in re.finditer(PATTERNS[options.where], text, re.I):
                part = text[max(0, match.start() - 40) : match.end() + 40]
                print(f"{file}:{line}: {' '.join(part.split())}")
        return
    if options.trees:
        show("code", {str(tree): code(tree) for tree in options.trees})
        show("docstrings", {str(tree): prose(list(docstrings(tree))) for tree in options.trees})
    if options.docs:
        show("Markdown", {str(tree): prose(list(pages(tree))) for tree in options.docs})


if __name__ == "__main__":
    main()
