"""TensorBoard files, written at once by the caller's thread.

tensorboardX's own SummaryWriter hands everything to a thread that ends silently when the disk is full, and after ten more
values the caller waits for it for ever.
"""

import sys
import time


class Board:
    """Scalars and images of a run, for `tensorboard --logdir FOLDER`.

    Args:
      folder: made if absent; purge_step: what an earlier start wrote from this step on is hidden.
    """

    def __init__(self, folder: str, purge_step: int):
        from tensorboardX import event_file_writer, record_writer, summary
        from tensorboardX.proto import event_pb2

        record_writer.directory_check(folder)
        self._summary, self._event = summary, event_pb2.Event
        self._file = event_file_writer.EventsWriter(f'{folder}/events')
        start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._file.write_event(self._event(wall_time=time.time(), step=purge_step, session_log=start))

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Adds numbers under their names."""
        for name, value in values.items():
            self._add(step, self._summary.scalar(name, value))
        self._file.flush()

    def image(self, step: int, image) -> None:
        """Adds a uint8 image [H, W, 3]."""
        self._add(step, self._summary.image('preview', image, dataformats='HWC'))
        self._file.flush()

    def close(self) -> None:
        self._file.close()

    def _add(self, step: int, summary) -> None:
        self._file.write_event(self._event(wall_time=time.time(), step=step, summary=summary))


def make(folder: str, purge_step: int) -> Board | None:
    """A board; None without tensorboardX. It imports torch where that is installed, for two seconds and no use here: hidden."""
    hidden = 'torch' not in sys.modules
    if hidden:
        sys.modules['torch'] = None
    try:
        return Board(folder, purge_step)
    except ImportError:
        return None
    finally:
        if hidden:
            del sys.modules['torch']
