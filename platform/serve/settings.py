"""What can be chosen about an encoder that is served; also the `args` of a RayService's application."""

from pydantic import BaseModel, Field, NonNegativeFloat, PositiveFloat, PositiveInt


class Settings(BaseModel, frozen=True, extra="forbid"):
    encoder: str = Field(description="a .pt2 file, a run or models:/NAME@ALIAS, which is followed")
    replicas: PositiveInt = Field(1, description="processes that embed")
    threads: PositiveInt = Field(1, description="CPUs, and torch threads, of each")
    gpu: bool = Field(False, description="whether each takes a GPU")
    batch: PositiveInt = Field(32, description="requests that are embedded together, at most")
    wait_ms: NonNegativeFloat = Field(5, description="how long the first of them waits for others")
    max_bytes: PositiveInt = Field(10 << 20, description="of a request's body")
    max_pixels: PositiveInt = Field(25_000_000, description="of an image, height x width")
    follow_s: PositiveFloat = Field(30, description="between two looks at what an alias means")
    drain_s: PositiveFloat = Field(30, description="that requests in flight may take at the end")
