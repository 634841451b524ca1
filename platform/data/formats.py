"""Which files are what: images by their ending, and by their first bytes where it does not tell; the rest by ending."""

import re

# In order of preference where a sample has several.
IMAGE_EXTENSIONS = (
    *("jpg", "jpeg", "jfif", "jpe", "png", "webp", "bmp", "tif", "tiff", "gif"),
    *("ppm", "pgm", "pbm", "pnm", "jp2", "j2k", "avif"),
)
# Of other members, by modality; likewise in order of preference.
MEMBER_EXTENSIONS = {"text": ("txt",), "json": ("json",), "audio": ("wav", "flac", "ogg"), "array": ("npy",)}
START = 32  # bytes that tell the format
_OTHER_NAMES = {"jfif": "jpg", "jpe": "jpg"}  # of what webdataset's decoders know

_DISTINCT = {
    "jpg": b"\xff\xd8\xff",
    "png": b"\x89PNG\r\n\x1a\n",
    "gif": b"GIF8[79]a",
    "webp": b"RIFF....WEBP",
    "jp2": b"\0\0\0\x0cjP  ",
    "avif": b"....ftypavi[fs]",
}
_WEAK = {  # also the start of raw photos, of text, of anything
    "tif": b"II\\*\0|MM\0\\*",
    "bmp": b"BM....\0\0\0\0.{4}[\x0c\x28\x34\x38\x40\x6c\x7c]\0\0\0",
    "j2k": b"\xff\x4f\xff\x51",
    "ppm": b"P[36]\\s[\\s\\d#]",
    "pgm": b"P[25]\\s[\\s\\d#]",
    "pbm": b"P[14]\\s[\\s\\d#]",
}


def image_format(start: bytes, *, weak: bool = True) -> str | None:
    """The extension that the first `START` bytes of an image file deserve; None: no image that we know.

    weak: accept formats whose first bytes other files share (raw photos are TIFF inside).
    """
    known = _DISTINCT | _WEAK if weak else _DISTINCT
    return next((name for name, magic in known.items() if re.match(magic, start, re.DOTALL)), None)


def is_image(extension: str) -> bool:
    """extension: lower case, without the dot; of `seg.png` the last part counts."""
    return extension.rpartition(".")[2] in IMAGE_EXTENSIONS


def common_name(extension: str) -> str:
    """jfif and jpe are JPEG under names that other programs do not know."""
    return _OTHER_NAMES.get(extension, extension)
