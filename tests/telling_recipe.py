"""A recipe whose extractors leave the number of their process in a folder."""

import os
from dataclasses import dataclass
from pathlib import Path

from phiscope.extraction.recipe import Recipe


@dataclass(frozen=True, kw_only=True)
class TellingRecipe(Recipe):
    folder: Path

    def make(self):
        (self.folder / str(os.getpid())).touch()
        return super().make()
