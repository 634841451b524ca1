"""The recipe's `monitor` section."""

from pydantic import BaseModel, Field, PositiveFloat, PositiveInt


class MonitorConfig(BaseModel, frozen=True, extra="forbid", strict=True):
    every_epochs: PositiveInt = Field(1, description="epochs between evaluations on the holdout")
    k: PositiveInt = Field(20, description="neighbours")
    temperature: PositiveFloat = Field(0.1, description="a neighbour weighs exp(cosine / temperature)")
