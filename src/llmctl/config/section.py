"""What every section of the configuration has in common."""

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """A section: frozen, and unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)
