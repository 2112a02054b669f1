"""A folder to publish: GGUF files, what each of them loses, and all that people need to run and to check them.

What makes one is in `quantkit.release.release`, which measures and so needs torch; nothing here does.
"""

from __future__ import annotations

from quantkit.release.push import Upload, push, upload
from quantkit.release.settings import read_settings

__all__ = ["Upload", "push", "read_settings", "upload"]
