"""Pictures of requests: what a request brings along, or what lies in a folder that was allowed; nothing is fetched.

A picture is kept in a folder of the server until its request is answered, byte for byte: an edit knows the picture that
it was made with by its bytes.
"""

import base64
import binascii
import hashlib
import re
import shutil
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import unquote, urlsplit

from unike.core.errors import UnikeError
from unike.core.files import read_file
from unike.core.images import load_image
from unike.serve.errors import ApiError, invalid

DATA_URL = re.compile(r"data:(?P<type>[\w.+/-]*)(?P<base64>;base64)?,", re.ASCII | re.IGNORECASE)

TYPES = ("image/png", "image/jpeg", "image/jpg", "image/webp", "image/gif", "image/bmp", "image/tiff")


@contextmanager
def unnamed(path: Path | None) -> Iterator[None]:
    """Within the block, what is wrong with a request's picture is told without the path of its file.

    Raises:
        ApiError: Something is wrong with it.
    """
    try:
        yield
    except UnikeError as error:
        if path is None or str(path) not in str(error):
            raise
        said = " ".join(str(error).replace(str(path), "the picture of the request").split())
        raise invalid(said, "image_url") from None


class Pictures:
    """Where pictures of requests are kept while these are answered.

    Args:
        most: Bytes of a picture.
        folders: Below which ``file:`` URLs may lead.
    """

    def __init__(self, most: int, folders: Sequence[Path] = ()) -> None:
        self.most = most
        self.folders = tuple(folder.resolve() for folder in folders)
        self._kept = TemporaryDirectory(prefix="unike-serve-")

    def keep(self, url: str) -> Path:
        """A file with a picture, for one request; `drop` it.

        Args:
            url: A data URL, or a ``file:`` URL below an allowed folder.

        Raises:
            ApiError: It is something else, too large, or no picture.
        """
        content = self._content(url)
        # Called by its content, so that nothing takes the name for one that a person gave.
        path = Path(self._kept.name) / uuid.uuid4().hex / hashlib.sha256(content).hexdigest()
        path.parent.mkdir()
        path.write_bytes(content)
        try:
            with unnamed(path):
                load_image(path)
        except ApiError:
            self.drop(path)
            raise
        return path

    def drop(self, path: Path) -> None:
        """Remove the file of a picture."""
        shutil.rmtree(path.parent, ignore_errors=True)

    def close(self) -> None:
        """Remove all of them."""
        self._kept.cleanup()

    def _content(self, url: str) -> bytes:
        if url[:5].casefold() == "data:":
            return self._of_data(url)
        if url.startswith("file:"):
            return self._of_file(url)
        shown = url[:60] + ("..." if len(url) > 60 else "")
        raise invalid(
            f"the picture {shown!r} is not fetched; send it along as a data URL: data:image/png;base64,...", "image_url"
        )

    def _of_data(self, url: str) -> bytes:
        head = DATA_URL.match(url)
        if head is None or not head["base64"] or head["type"].lower() not in TYPES:
            raise invalid(
                f"the picture's URL begins with {url[:40]!r}; give data:TYPE;base64,... with one of {', '.join(TYPES)}",
                "image_url",
            )
        if (len(url) - head.end()) * 3 > self.most * 4 + 12:
            raise self._too_large()
        try:
            content = base64.b64decode(url[head.end() :], validate=True)
        except (binascii.Error, ValueError) as error:
            raise invalid(f"the picture's data URL is not base64: {error}", "image_url") from None
        if len(content) > self.most:
            raise self._too_large()
        return content

    def _of_file(self, url: str) -> bytes:
        """A file below an allowed folder, wherever links lead; of others it is not told whether they are there."""
        refused = invalid(f"the picture {url[:200]!r} is in no folder that this server may read", "image_url")
        try:
            parts = urlsplit(url)
            path = Path(unquote(parts.path, errors="strict")).resolve(strict=True)
            if parts.netloc not in ("", "localhost") or not any(path.is_relative_to(each) for each in self.folders):
                raise refused
            if path.stat().st_size > self.most:
                raise self._too_large()
            content = read_file(path)
            if path.resolve(strict=True) != path:  # it has become a link meanwhile
                raise refused
        except (OSError, ValueError, RuntimeError):
            raise refused from None
        if len(content) > self.most:
            raise self._too_large()
        return content

    def _too_large(self) -> ApiError:
        return ApiError(413, f"a picture has at most {self.most:,} bytes here; scale it down", param="image_url")
