"""mmengine writes files through its storage backends; these write each under its name only when it is whole."""

from pathlib import Path

from mmengine.fileio import FileClient, HardDiskBackend, LocalBackend, register_backend

from mmrepmtl.utils.files import sync_folder, whole_file


class _WholeFiles:
    """A kill or a full disk leaves the file that was there before."""

    def put(self, obj: bytes, filepath: str | Path) -> None:
        """Writes a file, on the disk when this returns."""
        try:
            with whole_file(filepath) as file:
                file.write(obj)
        except OSError as error:
            # `from error` keeps the system's own words below.
            raise OSError(
                error.errno,
                f'{filepath} ({len(obj) / 2**20:.1f} MB) could not be written: {error.strerror}. Files that were '
                'there are unchanged; make room, then go on with --resume',
            ) from error
        sync_folder(Path(filepath).parent)

    def put_text(self, obj: str, filepath: str | Path, encoding: str = 'utf-8') -> None:
        """Writes a text file, on the disk when this returns."""
        self.put(obj.encode(encoding), filepath)


# Checkpoints of any Runner and hook pass through here, also those of configs that do not know this package.
@register_backend('local', force=True, prefixes='')
class WholeFileBackend(_WholeFiles, LocalBackend):
    """mmengine's backend for local files, with whole files only."""


class WholeFileDiskBackend(_WholeFiles, HardDiskBackend):
    """The same for hooks with ``file_client_args``, mmengine's older way."""


FileClient.register_backend('disk', WholeFileDiskBackend, force=True)
