"""A base class of configuration sections, which refuses keys and values under their old names."""

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, model_validator


class StrictConfig(BaseModel):
    """A frozen configuration section that refuses unknown keys, and names the new key or value for an old one.

    A subclass declares what was renamed:

        SECTION: ClassVar = "gate"
        RENAMED_KEYS: ClassVar = {"held_out_share": "held_out_fraction"}
        RENAMED_VALUES: ClassVar = {"mode": {"fused": "stacked"}}
        MOVED_KEYS: ClassVar = {"vectors_file": "item_vectors.file"}

    Attributes:
        SECTION: path of the section in the YAML file, for the message.
        RENAMED_KEYS: old key -> new key.
        RENAMED_VALUES: by key, old value -> new value.
        MOVED_KEYS: old key -> what to write in another section.

    Raises:
        ValueError: a key or value has its old name: `gate.held_out_share was renamed; write gate.held_out_fraction`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    SECTION: ClassVar[str] = ""
    RENAMED_KEYS: ClassVar[Mapping[str, str]] = {}
    RENAMED_VALUES: ClassVar[Mapping[str, Mapping[str, str]]] = {}
    MOVED_KEYS: ClassVar[Mapping[str, str]] = {}

    @model_validator(mode="before")
    @classmethod
    def _refuse_old_names(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        prefix = f"{cls.SECTION}." if cls.SECTION else ""
        for old, new in cls.RENAMED_KEYS.items():
            if old in values:
                raise ValueError(f"{prefix}{old} was renamed; write {prefix}{new}")
        for old, new in cls.MOVED_KEYS.items():
            if old in values:
                raise ValueError(f"{prefix}{old} has moved; write {new}")
        for key, renamed in cls.RENAMED_VALUES.items():
            value = values.get(key)
            if isinstance(value, str) and value in renamed:
                raise ValueError(f"{prefix}{key}: {value} was renamed; write {prefix}{key}: {renamed[value]}")
        return values
