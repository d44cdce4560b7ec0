import os

import pytest

from mmrepmtl.utils.folders import check_writable


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / 'file').touch()
    with pytest.raises(ValueError, match='the work directory .*file/run cannot be written to, since .*file is a file'):
        check_writable(tmp_path / 'file' / 'run', 'the work directory')
    check_writable(tmp_path / 'new', 'the work directory')
    assert os.listdir(tmp_path / 'new') == []
