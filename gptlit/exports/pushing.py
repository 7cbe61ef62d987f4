"""Uploads an exported folder to Hugging Face's Hub."""

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from gptlit.messages import RunError, UsageError, opt

if TYPE_CHECKING:
    from huggingface_hub import HfApi

TOKEN = "HF_TOKEN"


class Hub:
    """A repository of models on the Hub; made before a folder is written, so that it fails early.

    The token is read from the environment alone, and is in no message.

    Args:
        name: Name of the repository, as user/name.
        public: Whether everybody may see it.

    Raises:
        UsageError: The name is invalid, there is no token, or huggingface_hub isn't installed.
    """

    def __init__(self, name: str, public: bool) -> None:
        if not re.fullmatch(r"[\w.-]+/[\w.-]+", name, re.ASCII):
            raise UsageError("must be a name such as user/my-model", "push", name)
        self._token = os.environ.get(TOKEN, "")
        if not self._token:
            reason = f"needs the variable {TOKEN}, with a token that may write"
            raise UsageError(reason, "push", name)
        try:
            import huggingface_hub
        except ImportError as error:
            reason = "needs the package huggingface_hub: pip install 'gptlit[hub]'"
            raise UsageError(reason, "push", name) from error
        self.name, self.public = name, public
        self._api: HfApi = huggingface_hub.HfApi(
            endpoint=os.environ.get("HF_ENDPOINT") or None, token=self._token
        )

    def push(self, folder: Path) -> str:
        """Upload a folder in one commit, make the repository if need be, and return its address.

        Raises:
            UsageError: The repository is public, but the model is to be private.
            RunError: The Hub can't be reached, or refuses.
        """
        from huggingface_hub.utils import disable_progress_bars

        disable_progress_bars()
        try:
            address = self._api.create_repo(self.name, private=not self.public, exist_ok=True)
            is_public = not self._api.model_info(self.name).private
            if is_public and not self.public:
                reason = f"is a public repository; give {opt('public')} true, or another name"
                raise UsageError(reason, "push", self.name)
            self._api.upload_folder(
                repo_id=self.name, folder_path=folder, commit_message="Upload by gptlit export"
            )
        except UsageError:
            raise
        except Exception as error:  # of the network, and of several HTTP libraries
            cause = error.__cause__ or error
            first = (str(cause).strip().splitlines() or [type(cause).__name__])[0]
            shown = first.replace(self._token, "...")
            again = f"hf upload {self.name} {folder}"
            raise RunError(
                f"--push {self.name}: {shown}; {folder} is written, and {again} tries again"
            ) from error
        return str(address)
