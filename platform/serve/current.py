"""The encoder that is served: of an alias, the version that it means now."""

import logging
import threading
from collections.abc import Callable

import numpy as np
import torch

from vergence.platform.encoders.encoder import LoadedEncoder
from vergence.platform.encoders.load import load_encoder, resolved

logger = logging.getLogger("ray.serve")


class Current:
    """Holds an encoder ready to call, and replaces it, whole, by the version that its alias has moved to.

    Whoever has taken `encoder` keeps the one it took. While the registry does not answer, or has a version that
    cannot be loaded, the one at hand stays; `failed` is called once each time.
    """

    def __init__(
        self, ref: str, device: torch.device, every_s: float, failed: Callable[[], None] = lambda: None
    ) -> None:
        self.ref, self.device, self.every_s, self.failed = ref, device, every_s, failed
        self.encoder = self._load(resolved(ref))
        if "@" in ref and ref.startswith("models:"):
            threading.Thread(target=self._follow, name="follow", daemon=True).start()

    def _follow(self) -> None:
        pause = threading.Event()
        while not pause.wait(self.every_s):
            try:
                self.look()
            except Exception as error:  # of the registry, or of the version: what is served goes on
                self.failed()
                logger.warning("%s: still %s: %s", self.ref, self.encoder.name, error)

    def look(self) -> None:
        """Take the version that the alias means now, if it is another one."""
        now = resolved(self.ref)
        if now != self.encoder.name:
            self.encoder = self._load(now)
            logger.info("%s: now %s", self.ref, now)

    def _load(self, ref: str) -> LoadedEncoder:
        encoder = load_encoder(ref).to(self.device)
        encoder(np.zeros((2, encoder.size, encoder.size, 3), np.uint8))  # the first call is slow
        return encoder
