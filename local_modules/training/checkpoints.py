"""Checkpoints that survive a kill or a power cut at any moment."""

import json
import shutil
import time
from pathlib import Path

from speechbrain.utils.checkpoints import CKPT_PREFIX, Checkpointer
from speechbrain.utils.distributed import ddp_barrier, if_main_process

from local_modules.errors import RunError, is_disk_full, one_line
from local_modules.files import put_on_disk, replacing

MARKER = "complete.json"


class WholeCheckpointer(Checkpointer):
    """A checkpointer that never takes half a checkpoint for a whole one.

    SpeechBrain's writes a checkpoint file by file into its final folder and deletes it
    file by file, so a process killed meanwhile leaves a folder that a restart tries to
    load. This one lists the files and their sizes in a marker that is written last,
    when they are on the disk, and ignores folders whose files differ. Arguments as for
    `speechbrain.utils.checkpoints.Checkpointer`.

    Example
    -------
    >>> import torch
    >>> folder = getfixture("tmpdir")
    >>> checkpointer = WholeCheckpointer(folder, {"net": torch.nn.Linear(2, 2)})
    >>> checkpoint = checkpointer.save_checkpoint()
    >>> len(checkpointer.list_checkpoints())
    1
    >>> (checkpoint.path / "net.ckpt").unlink()
    >>> len(checkpointer.list_checkpoints())
    0
    """

    def save_checkpoint(self, *args, **kwargs):
        """As SpeechBrain's, and removes what earlier kills left.

        Raises
        ------
        RunError
            The disk is full.
        """
        try:
            checkpoint = super().save_checkpoint(*args, **kwargs)
        except RuntimeError as error:
            if not is_disk_full(error):
                raise
            raise RunError(
                f"{self.checkpoints_dir}: a checkpoint can't be written: the disk may "
                f"be full ({one_line(error)[:80]}); make room, and the same command "
                "continues"
            ) from error
        ddp_barrier()  # each rank may have written
        if if_main_process():
            sizes = {p.name: p.stat().st_size for p in checkpoint.path.iterdir()}
            for name in sizes:
                put_on_disk(checkpoint.path / name)
            with replacing(checkpoint.path / MARKER) as file:
                json.dump(sizes, file)
            for folder in self.checkpoints_dir.glob(f"{CKPT_PREFIX}+*"):
                if not _is_whole(folder):
                    shutil.rmtree(folder)
        ddp_barrier()  # no rank looks before the marker exists
        return checkpoint

    def _save_checkpoint_metafile(self, path, meta, end_of_epoch):
        # SpeechBrain goes by this time: on a machine whose clock is behind that of an
        # earlier one, it would delete each new checkpoint instead of the old.
        if earlier := self.find_checkpoint():
            latest = earlier.meta["unixtime"] + 1e-3
            meta = {"unixtime": max(time.time(), latest), **meta}
        return super()._save_checkpoint_metafile(path, meta, end_of_epoch)

    def save_and_keep_only(self, *args, **kwargs):
        """As SpeechBrain's, whose default list of `importance_keys` grows with each
        call."""
        super().save_and_keep_only(*args, **{"importance_keys": [], **kwargs})

    def _list_checkpoint_dirs(self):
        return [
            folder for folder in super()._list_checkpoint_dirs() if _is_whole(folder)
        ]


def _is_whole(folder: Path) -> bool:
    try:
        sizes = json.loads((folder / MARKER).read_text(encoding="utf-8"))
        return all((folder / n).stat().st_size == size for n, size in sizes.items())
    except (FileNotFoundError, ValueError):
        return False
