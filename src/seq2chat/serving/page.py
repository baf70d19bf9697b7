"""The files of the pages, which are served from the package."""

from importlib import resources

from starlette.exceptions import HTTPException
from starlette.responses import Response

MEDIA_TYPES = {
    ".html": "text/html",
    ".css": "text/css",
    ".js": "text/javascript",
    ".svg": "image/svg+xml",
}
"""The files of the page that are served, by their suffix."""

PAGES = {
    "/": "index.html",
    "/inside": "inside.html",
    "/training": "training.html",
    "/docs": "docs.html",
}
"""The file of each page, by its path."""


def page_file(name: str, status: int = 200) -> Response:
    """Return a file of the page. Raises HTTPException for any other name."""
    # The name is compared with the files that exist, and never becomes part of a path: on some
    # systems it could name a drive or a device.
    suffix = next((suffix for suffix in MEDIA_TYPES if name.endswith(suffix)), None)
    files = resources.files("seq2chat.serving").joinpath("web").iterdir()
    file = next((file for file in files if file.name == name), None)
    if suffix is None or file is None:
        raise HTTPException(404, "There is no such page.")
    return Response(
        file.read_bytes(),
        status,
        media_type=f"{MEDIA_TYPES[suffix]}; charset=utf-8",
        headers={"cache-control": "no-cache"},
    )
