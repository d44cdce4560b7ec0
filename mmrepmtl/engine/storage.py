"""Storage backends of mmengine that give a file its name only when it is whole."""

from pathlib import Path

from mmengine.fileio import FileClient, HardDiskBackend, LocalBackend, register_backend

from mmrepmtl.utils.files import sync_folder, whole_file


class _WholeFiles:
    """Writes whole files: a kill or a full disk leaves the file that was there before."""

    def put(self, obj: bytes, filepath: str | Path) -> None:
        """Writes a file; it is on the disk when this returns.

        Raises:
            OSError: If it could not be written; names the file and its size.
        """
        try:
            with whole_file(filepath) as file:
                file.write(obj)
        except OSError as error:
            raise OSError(
                error.errno,
                f'{filepath} ({len(obj) / 2**20:.1f} MB) could not be written: {error.strerror}. Files that were '
                'there are unchanged; make room, then go on with --resume',
            ) from error
        sync_folder(Path(filepath).parent)

    def put_text(self, obj: str, filepath: str | Path, encoding: str = 'utf-8') -> None:
        """Writes a text file; it is on the disk when this returns."""
        self.put(obj.encode(encoding), filepath)


# Every Runner and hook of mmengine writes its checkpoints through here, whatever its config.
@register_backend('local', force=True, prefixes='')
class WholeFileBackend(_WholeFiles, LocalBackend):
    """mmengine's backend for local files; it writes whole files only."""


class WholeFileDiskBackend(_WholeFiles, HardDiskBackend):
    """The same for hooks with ``file_client_args``, mmengine's older interface."""


FileClient.register_backend('disk', WholeFileDiskBackend, force=True)
