"""How many users and candidates the matrix ranks."""

from pydantic import BaseModel, ConfigDict, Field


class RankingConfig(BaseModel):
    """The rankings that NDCG@10 and the hit rate at 10 are measured on. They are evaluation alone: no setting here
    changes a training or makes a cell run again.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    users: int = Field(
        default=5000,
        ge=0,
        description="test users whose positive is ranked among sampled items, taken by hash, so that a smaller number "
        "is part of a larger one; 0: none",
    )
    candidates: int = Field(
        default=100,
        ge=10,
        description="items sampled for each user, uniformly over the catalog without the items that the user ever "
        "interacted with; all of these where there are fewer",
    )
    all_items_users: int = Field(
        default=0,
        ge=0,
        description="test users whose positive is ranked among all items of the catalog that the user never interacted "
        "with; 0: none. The scores take 4 bytes for each user and item of a cell",
    )
    seed: int = Field(default=0, ge=0, description="of the users and of the sampled items")
