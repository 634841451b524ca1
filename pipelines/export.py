"""`vergence export`: an encoder in the form that another tool reads."""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vergence.platform.errors import UserError, nearest
from vergence.platform.text import printable

if TYPE_CHECKING:
    from vergence.platform.encoders.encoder import LoadedEncoder

# format -> what OUT is, in words
KINDS = {
    "pt2": "torch.export's program; read by torch alone, pixels in, vectors out",
    "safetensors": "weights of the backbone under timm's names, the card in the metadata",
    "onnx": "one file: image uint8 (n, S, S, 3) -> embedding float32 (n, dim); needs vergence[onnx]",
    "timm": 'a folder for timm.create_model("local-dir:OUT", pretrained=True)',
}


def configure(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("encoder", metavar="ENCODER", help="a run's name, a .pt2 file or models:/NAME@ALIAS")
    parser.add_argument(
        "out", metavar="OUT", type=Path, help="a file, or timm's folder; replaced if it exists"
    )
    parser.add_argument("--format", metavar="NAME", help=f"{', '.join(KINDS)}; default: by the ending of OUT")
    parser.add_argument("--json", action="store_true", help="what was written, as JSON")
    told = "\n".join(f"  {name:<12} {words}" for name, words in KINDS.items())
    parser.epilog = f"""\
formats:
{told}

What is written has been loaded back by its reader (torch, safetensors, onnxruntime, timm) and gives the program's vectors
at batches of 1, 7 and 64: to 1e-5, ONNX to 1e-4.

examples:
  vergence export models:/simclr-cifar10@champion encoder.onnx
  vergence export simclr-cifar10 weights.safetensors
  vergence export my-vit timm-encoder/ --format timm"""


def main(args: argparse.Namespace) -> int:
    form = args.format or _by_ending(args.out)
    made = export(args.encoder, args.out, form)
    if args.json:
        print(json.dumps(made, indent=1))
    else:
        print(f"{args.out}: written: {made['encoder']} as {form}, {made['bytes']:,} bytes")
        print(KINDS[form])
    return 0


def export(encoder: "LoadedEncoder | str", out: Path | str, format: str) -> dict[str, Any]:
    """Write an encoder to `out`; the facts of what was written.

    encoder: what `load_encoder` gives, or what it takes. format: pt2, safetensors, onnx, timm.
    Raises UserError: no such encoder or format, a format that this encoder does not fit, or a package that is missing;
    VergenceError: what was written gives other vectors than the program.
    """
    out = Path(out)
    _check(out, format)
    from vergence.platform.encoders.formats import FORMATS
    from vergence.platform.encoders.load import load_encoder

    loaded = (load_encoder(encoder) if isinstance(encoder, str) else encoder).to("cpu")
    out.parent.mkdir(parents=True, exist_ok=True)
    FORMATS[format](loaded, out)
    files = sorted(out.iterdir()) if out.is_dir() else [out]
    return {
        "encoder": loaded.name,
        "digest": loaded.digest,
        "format": format,
        "out": printable(str(out)),
        "bytes": sum(file.stat().st_size for file in files),
        "size": loaded.size,
        "dim": loaded.dim,
    }


def _by_ending(out: Path) -> str:
    form = out.suffix.removeprefix(".")
    if form not in KINDS or form == "timm":
        raise UserError(
            f"{out}: its ending names no format; end it in .pt2, .safetensors or .onnx, or give --format"
        )
    return form


def _check(out: Path, form: str) -> None:
    if form not in KINDS:
        raise UserError(f"format {form!r}: there is no such one ({nearest(form, KINDS)})")
    if form == "timm" and out.is_file():
        raise UserError(f"{out}: is a file; the format timm is a folder")
    if form != "timm" and out.is_dir():
        raise UserError(f"{out}: is a folder; the format {form} is a file")
