"""Vergence: pretrain image encoders without labels, from a laptop to a cluster.

    from vergence.pipelines import evaluate, load_encoder, pretrain

`vergence.pipelines` has the verbs as functions; `vergence.__version__` is what is installed. Nothing is imported before
it is used.
"""

__all__ = ["__version__"]

folder, _, name = __path__[0].rpartition("/")
if name == "top":  # a checkout, installed as editable: the other packages lie beside this folder
    __path__.append(folder)


def __getattr__(name: str) -> str:
    if name == "__version__":
        from importlib.metadata import version

        return version("vergence")
    raise AttributeError(f"vergence has no {name!r}; the verbs are in vergence.pipelines")
