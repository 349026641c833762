"""What a training does about recordings that can't be decoded."""

import torch
from speechbrain.utils.distributed import ddp_all_reduce
from torch.distributed import ReduceOp

from local_modules.audio import ReadableBatch
from local_modules.distributed import gather_on_all, rank_and_count
from local_modules.errors import RunError


class UnreadableRecordings:
    """Counts the training recordings that can't be decoded, and ends the run if they
    are too many.

    Arguments
    ---------
    n_utterances : int
        Training utterances.
    max_share : float
        Share of them that may be unreadable.
    output_folder : str
        The run's folder, whose log names them.
    """

    def __init__(self, n_utterances: int, max_share: float, output_folder: str):
        self.n_utterances, self.max_share = n_utterances, max_share
        self.output_folder = output_folder
        self.lost = {}  # IDs, in the order found

    def check(self, batch: ReadableBatch, device: torch.device) -> None:
        """Counts those of a batch, over all ranks.

        Raises
        ------
        RunError
            They are too many, or too few of a batch are left for batch norm.
        """
        lost = gather_on_all(batch.lost, device)
        self.lost.update(dict.fromkeys(lost))
        if lost:
            n_left = torch.tensor(0 if batch.is_empty else len(batch))
            n_left = int(ddp_all_reduce(n_left.to(device), ReduceOp.MIN))
            if n_left < (2 if rank_and_count()[1] == 1 else 1):
                raise RunError(
                    f"{', '.join(lost[:3])}: only {n_left} recording(s) of a batch can "
                    "be decoded, too few for batch norm: repair the recordings, or "
                    "start another run with a larger --batch_size"
                )
        if len(self.lost) > self.max_share * self.n_utterances:
            raise RunError(
                f"{len(self.lost)} of {self.n_utterances} training recordings can't be "
                f"decoded, over max_bad_share {self.max_share:.2%}; the first is "
                f"{next(iter(self.lost))}; {self.output_folder}/log.txt lists all: "
                "repair them or raise max_bad_share"
            )
