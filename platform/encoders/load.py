"""Load an encoder by the name of its run, by file, or from the registry."""

import logging
import re
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import torch

from vergence.platform.encoders.encoder import LoadedEncoder, digest_of
from vergence.platform.encoders.export import CARD, PROGRAM, read_card
from vergence.platform.encoders.versions import all_aliases, registry
from vergence.platform.errors import UserError, nearest
from vergence.platform.home import home
from vergence.platform.mlflow_moved import local_path
from vergence.platform.text import printable

MODEL = re.compile(r"models:/(?P<name>[^/@]+)(?:@(?P<alias>[^/@]+)|/(?P<version>[0-9]+))")


def load_encoder(ref: str) -> LoadedEncoder:
    """The encoder named by `ref`: models:/NAME@ALIAS, models:/NAME/VERSION, a .pt2 file, a folder that holds
    one, or a run of the state folder.

    Raises UserError when there is none, naming what exists; VergenceError when the registry does not answer.
    """
    if ref.startswith("models:"):
        return _from_registry(ref)
    path = Path(ref)
    if path.is_file():
        return _open(path, ref)
    for folder in (path, path / "exports", home() / ref / "exports"):
        if (folder / PROGRAM).is_file():
            return _open(folder / PROGRAM, ref)
    if "/" in ref or path.suffix:
        raise UserError(
            f"{ref}: no such encoder; give a .pt2 file, a folder with {PROGRAM}, a run or models:/NAME@ALIAS"
        )
    if (home() / ref).is_dir():
        raise UserError(
            f"run {ref} has no exported encoder yet: finish it with the `vergence pretrain` that began it"
        )
    runs = [folder.parent.name for folder in home().glob("*/exports")]
    known = nearest(ref, runs) if runs else "it has no finished run yet"
    raise UserError(f"{ref}: no such run in {home()} ({known}); or give a .pt2 file or models:/NAME@ALIAS")


def _open(file: Path, name: str, card: Path | None = None) -> LoadedEncoder:
    """The program in `file`; `card` is its encoder.json, by default the one beside it."""
    logging.getLogger("torch.export").setLevel(
        logging.CRITICAL
    )  # it logs the traceback of what is no program
    try:
        if not zipfile.is_zipfile(file):
            raise ValueError("no archive; it may be cut off")
        with file.open("rb") as stream:  # torch takes no path that is not UTF-8
            program = torch.export.load(stream)
        [given], [made] = program.graph_signature.user_inputs, program.graph_signature.user_outputs
        nodes = {node.name: node.meta["val"] for node in program.graph.nodes if "val" in node.meta}
        _, side, width, channels = nodes[given].shape
        if nodes[given].dtype != torch.uint8 or side != width or channels != 3:
            raise ValueError(
                f"takes {nodes[given].dtype} {tuple(nodes[given].shape)}, not uint8 (n, S, S, 3)"
            )
    except Exception as error:  # torch.export.load raises whatever its parts raise
        raise UserError(f"{file}: not an exported encoder ({str(error).splitlines()[0][:120]})") from None
    card = card or file.parent / CARD
    try:
        read = read_card(card) if card.is_file() else None
    except ValueError as error:
        raise UserError(f"{card}: not the card of an encoder ({str(error).splitlines()[0]})") from None
    size, dim = int(side), int(nodes[made].shape[-1])
    return LoadedEncoder(printable(name), size, dim, digest_of(size, program.state_dict), read, program)


def resolved(ref: str) -> str:
    """models:/NAME/VERSION of the version that an alias means now; any other reference as it is.

    Raises like `load_encoder`.
    """
    if not ref.startswith("models:"):
        return ref
    match = _parsed(ref)
    with registry(ref) as client:
        return f"models:/{match['name']}/{_version(client, match)}"


def _from_registry(ref: str) -> LoadedEncoder:
    match = _parsed(ref)
    with registry(ref) as client, tempfile.TemporaryDirectory() as folder:
        import mlflow

        version = _version(client, match)
        name = f"models:/{match['name']}/{version}"
        kept = local_path(client.get_model_version_download_uri(match["name"], str(version)))
        if kept is not None and not kept.exists():
            raise UserError(f"{name}: its files are missing, they were in {kept}; put them back there")
        files = Path(mlflow.artifacts.download_artifacts(name, dst_path=folder))
        return _open(files / "data" / "model.pt2", name, files / "extra_files" / CARD)


def _parsed(ref: str) -> re.Match[str]:
    match = MODEL.fullmatch(ref)
    if not match:
        raise UserError(f"{ref}: write models:/NAME@ALIAS (models:/NAME@champion) or models:/NAME/VERSION")
    return match


def _version(client: Any, match: re.Match[str]) -> int:
    """The version that the reference means; UserError naming what the registry has."""
    import mlflow

    name, alias, version = match["name"], match["alias"], match["version"]
    aliases = all_aliases(client, name, match[0])
    if alias is not None:
        if alias not in aliases:
            known = nearest(alias, aliases) if aliases else "it has none; use models:/NAME/VERSION"
            raise UserError(f"{match[0]}: model {name} has no alias {alias} ({known})")
        return aliases[alias]
    try:
        return int(client.get_model_version(name, version).version)
    except mlflow.MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
    quote = '"' if "'" in name else "'"
    versions = sorted(
        int(row.version) for row in client.search_model_versions(f"name = {quote}{name}{quote}")
    )
    raise UserError(
        f"{match[0]}: model {name} has no version {version} (valid: {', '.join(map(str, versions))})"
    )
