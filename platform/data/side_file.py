"""What a shard holds, as a small file beside it: NAME.tar.idx, an Arrow stream of its contents."""

import json

import pyarrow as pa

from vergence.platform.data.contents import Chunk, Contents
from vergence.platform.data.walk import LeftOut
from vergence.platform.store import Object

SCHEMA = 1  # another one is read anew from the shard


def packed(contents: Contents, shard: Object) -> bytes:
    """shard: of which these are the contents; of another size or version, they are those of nothing."""
    about = {
        "schema": SCHEMA,
        "size": shard.size,
        "version": shard.version,
        "lost": [
            [reason, count, contents.lost.names[reason]] for reason, count in contents.lost.counts.items()
        ],
    }
    chunks = [_plain(chunk) for chunk in contents.chunks]
    types = {"key": pa.string()} | {name: each.type for chunk in chunks for name, each in chunk.items()}
    schema = pa.schema([*types.items()], {"vergence": json.dumps(about)})
    sink, options = pa.BufferOutputStream(), pa.ipc.IpcWriteOptions(compression="zstd")
    with pa.ipc.new_stream(sink, schema, options=options) as writer:
        for chunk in chunks:
            columns = [chunk.get(name, pa.nulls(len(chunk["key"]), kind)) for name, kind in types.items()]
            writer.write_batch(pa.RecordBatch.from_arrays(columns, schema=schema))
    return sink.getvalue().to_pybytes()


def unpacked(data: bytes, shard: Object) -> Contents | None:
    """None: these are not the contents of this object, or nothing that can be read."""
    try:
        with pa.ipc.open_stream(data) as reader:
            about = json.loads(reader.schema.metadata[b"vergence"])
            if [about[name] for name in ("schema", "size", "version")] != [SCHEMA, shard.size, shard.version]:
                return None
            chunks = [_used(batch) for batch in reader]
        lost = LeftOut()
        for reason, count, names in about["lost"]:
            lost.counts[reason], lost.names[reason] = count, names
        return Contents([_encoded(chunk) for chunk in chunks], lost)
    except (pa.ArrowException, OSError, KeyError, TypeError, ValueError):
        return None


def _used(batch: pa.RecordBatch) -> Chunk:
    """Without the columns that only other chunks have: here no sample has such a member."""
    columns = dict(zip(batch.schema.names, batch.columns))
    without = {
        name for name, each in columns.items() if name.endswith(".size") and each.null_count == len(each)
    }
    left_out = without | {f"{name.removesuffix('.size')}.offset" for name in without}
    left_out |= {"label"} if "cls.size" in without else set()
    return {name: each for name, each in columns.items() if name not in left_out}


def _plain(chunk: Chunk) -> Chunk:
    """Dictionaries of one chunk are not those of the next; as text they are no longer, compressed."""
    return chunk | {name: chunk[name].dictionary_decode() for name in chunk if name == "label"}


def _encoded(chunk: Chunk) -> Chunk:
    return chunk | {name: chunk[name].dictionary_encode() for name in chunk if name == "label"}
