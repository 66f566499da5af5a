"""Prompts as files that a person can edit.

A prompt file is plain text in sections, each headed by its name in square brackets on a line of its own;
`$name` is filled in, `$$` is a dollar sign, and lines before the first heading are comments. Its version, the
file's name and a hash of its content, is part of every cache key and of every score record, so an edit never
passes for the old wording.
"""

import hashlib
import importlib.resources
import os
import re
import string
from collections.abc import Mapping, Sequence

from sllmr.components.llm_scorer.errors import LlmError

_HEADING = re.compile(r"^\[([a-z_]+)\]\n", re.MULTILINE)


class Prompt:
    """One version of one prompt.

    Attributes:
        version: `listwise.v2-1a2b3c4d`.
        sections: templates by name.
    """

    def __init__(self, name: str, text: str, sections: Mapping[str, Sequence[str]]):
        """
        Args:
            name: the file's name without its ending.
            text: the file's content.
            sections: the placeholders that each section must hold, by section.

        Raises:
            LlmError: a section or a placeholder is missing or unknown.
        """
        self.version = f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
        parts = _HEADING.split(text)
        self.sections = {
            heading: string.Template(body.strip("\n")) for heading, body in zip(parts[1::2], parts[2::2], strict=True)
        }
        if set(self.sections) != set(sections):
            raise LlmError(
                f"prompt {name} must have the sections {sorted(sections)}, got {sorted(self.sections)}; edit the file"
            )
        for section, placeholders in sections.items():
            found = self.sections[section].get_identifiers()
            if set(found) != set(placeholders):
                raise LlmError(
                    f"section [{section}] of prompt {name} must hold "
                    f"{sorted('$' + p for p in placeholders)}, got {sorted('$' + p for p in found)}; edit "
                    "the file"
                )

    def fill(self, section: str, **values: str) -> str:
        """The section's text with its placeholders filled in."""
        return self.sections[section].substitute(values)


def load_prompt(default: str, path: str | None, sections: Mapping[str, Sequence[str]]) -> Prompt:
    """Reads a prompt: the package's own file `default`, or the file at `path` in its place."""
    if path is not None:
        with open(path, encoding="utf-8") as file:
            return Prompt(os.path.splitext(os.path.basename(path))[0], file.read(), sections)
    text = (importlib.resources.files(__package__) / "prompts" / default).read_text(encoding="utf-8")
    return Prompt(default.removesuffix(".txt"), text, sections)
