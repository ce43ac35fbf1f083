"""Files that commands read and write: images, folders of them, captions; where the results go."""

import csv
import io
import json
import secrets
import stat
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageOps

IMAGE_KINDS = (".png", ".jpg", ".jpeg", ".webp")
# What a folder may hold to be read; Pillow reads more where a file is named.
READ_KINDS = (*IMAGE_KINDS, ".bmp", ".gif", ".tif", ".tiff", ".avif")
INVERSION_KINDS = (".safetensors",)
# Sides that formats can have, in pixels.
_LONGEST = {".webp": 16383, ".jpg": 65500, ".jpeg": 65500}
# Bytes of a file of captions or of a caption: beyond that it is something else.
_TEXT_SIZE = 2**26


@dataclass(frozen=True)
class Job:
    """One input and where its result goes."""

    source: Path
    output: Path
    prompt: str | None = None


# ------------------------------------------------------------------------------------------------------------------- inputs


def check_file(name, path):
    if not path.exists():
        raise ValueError(f"{name}: {str(path)!r} does not exist")
    if not path.is_file():
        raise ValueError(f"{name}: {str(path)!r} is no file")


def check_image(name, path):
    """Raises ValueError if the file is missing, or does not begin as an image does."""
    check_file(name, path)
    with _reading(name, path), Image.open(path):
        pass


def read_image(name, path):
    """The image in a file, upright.  Raises ValueError if it cannot be read, for whatever reason."""
    check_file(name, path)
    with _reading(name, path), Image.open(path) as image:
        return ImageOps.exif_transpose(image)


class _reading:
    """Whatever Pillow raises (damaged files: SyntaxError, EOFError, zlib's) is a ValueError that names the file."""

    def __init__(self, name, path):
        self._what = f"{name}: {str(path)!r} cannot be read as an image"

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        if isinstance(error, Exception) and not isinstance(error, MemoryError):
            raise ValueError(f"{self._what}: {error}") from error


def expand(paths, kinds, name):
    """(the files, whether they are a list), folders replaced by the files of these kinds in them."""
    found = []
    for path in paths:
        if not path.is_dir():
            found.append(path)
            continue
        inside = sorted(one for one in path.iterdir() if one.suffix.lower() in kinds and not one.name.startswith("."))
        if not inside:
            raise ValueError(f"{name}: the folder {str(path)!r} holds no {', '.join(kinds)}")
        found.extend(inside)
    return found, len(found) > 1 or any(path.is_dir() for path in paths)


def _text(name, path):
    check_file(name, path)
    if path.stat().st_size > _TEXT_SIZE:
        raise ValueError(f"{name}: {str(path)!r} is too long to be text")
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{name}: {str(path)!r} is no text in UTF-8") from error


def read_captions(path):
    """{name of an image: its caption}, from a JSON object or from CSV lines name,caption.

    Raises ValueError for anything else.
    """
    text = _text("captions", path)
    if path.suffix.lower() == ".csv":
        rows = [row for row in csv.reader(io.StringIO(text), skipinitialspace=True) if row]
        wrong = next((row for row in rows if len(row) != 2), None)
        if wrong is not None:
            raise ValueError(
                f"captions: {str(path)!r} must have lines name,caption (a caption with commas in quotes), got {wrong}"
            )
        return dict(rows)
    try:
        captions = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"captions: {str(path)!r} is no JSON: {error}") from error
    if not isinstance(captions, dict) or not all(isinstance(one, str) for one in captions.values()):
        raise ValueError(f"captions: {str(path)!r} must be an object {{name: caption}}")
    return captions


def caption_of(path, captions, prompt):
    """What an image shows: by the file of captions, by --prompt, by the text of the same name beside it; else None."""
    for name in (path.name, path.stem, str(path)):
        if name in captions:
            return captions[name]
    beside = path.with_suffix(".txt")
    if prompt is None and beside.is_file():
        return _text("caption", beside).strip()
    return prompt


# ------------------------------------------------------------------------------------------------------------------ outputs


def check_output(path, kinds=IMAGE_KINDS):
    """Raises ValueError if nothing can be written there, or if its ending is not one of these; () are all."""
    if kinds and path.suffix.lower() not in kinds:
        raise ValueError(f"output must end with {', '.join(kinds)}, got {str(path)!r}")
    if path.is_dir():
        raise ValueError(f"output: {str(path)!r} is a folder")
    if not path.resolve().parent.is_dir():
        raise ValueError(f"output: the folder of {str(path)!r} does not exist")
    if path.exists() and not stat.S_ISREG(path.stat().st_mode):
        return  # a device
    _check_folder(path.resolve().parent)


def _check_folder(folder):
    """Permissions, file systems and quotas say only by trying whether they take a file."""
    probe = folder / f".nrinv-{secrets.token_hex(8)}"
    try:
        probe.touch()
    except OSError as error:
        raise ValueError(f"output: nothing can be written to the folder {str(folder)!r}: {error.strerror}") from error
    finally:
        with suppress(OSError):
            probe.unlink()


def outputs(sources, several, output, kinds, ending):
    """Where the result of each source goes: to `output`, or into that folder if there are several.

    kinds: endings that a single output may have; () are all.  ending: of the files in a folder.
    Raises ValueError if that cannot be written, or if two results would be one file.
    """
    if not several and not (output.is_dir() and output.suffix.lower() not in (*kinds, ending)):
        check_output(output, kinds)
        return [output]
    if output.suffix.lower() in (*kinds, ending) or (output.exists() and not output.is_dir()):
        raise ValueError(f"output must be a folder where several files may go to, got {str(output)!r}")
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"output: the folder {str(output)!r} cannot be made: {error.strerror}") from error
    _check_folder(output)
    found = {}
    for source in sources:
        path = output / f"{source.stem}{ending}"
        if path in found:
            raise ValueError(f"output: {str(found[path])!r} and {str(source)!r} would both go to {str(path)!r}")
        found[path] = source
    return list(found)


def encoded(images, path, **options):
    """The bytes of a PIL image, or of an animation, in the format that the ending of the path says."""
    first, *more = images if isinstance(images, list) else [images]
    if more:
        options.update(save_all=True, append_images=more)
    buffer = io.BytesIO()
    first.save(buffer, format=Image.registered_extensions()[path.suffix.lower()], **options)
    return buffer.getvalue()


def save_image(images, path, **options):
    """Write a PIL image, or a list of them as an animation, beside the path, and rename it when it is complete."""
    from ..files import replace_file

    replace_file(path, [encoded(images, path, **options)])


def check_sides(path, width):
    """Raises ValueError if an image as wide as that cannot be written to the path."""
    longest = _LONGEST.get(path.suffix.lower())
    if longest is not None and width > longest:
        raise ValueError(f"output: {path.suffix} images have at most {longest} pixels a side, got {width}; use .png")
