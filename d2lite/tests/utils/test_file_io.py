from detectron2.utils.file_io import PathManager
from iopath.common.file_io import HTTPURLHandler, g_pathmgr


def test_local_files(tmp_path):
    path = str(tmp_path / "a" / "b.txt")
    PathManager.mkdirs(str(tmp_path / "a"))
    with PathManager.open(path, "w") as file:
        file.write("text")
    assert PathManager.isfile(path) and PathManager.ls(str(tmp_path / "a")) == ["b.txt"]
    assert PathManager.get_local_path(path) == path


def test_hosted_files_are_downloaded(monkeypatch, tmp_path):
    (tmp_path / "w.pkl").write_text("weights")
    asked = []

    def download(self, path, **kwargs):
        asked.append(path)
        return str(tmp_path / "w.pkl")

    monkeypatch.setattr(HTTPURLHandler, "_get_local_path", download)
    with PathManager.open("detectron2://some/w.pkl") as file:
        assert file.read() == "weights"
    assert asked[0] == "https://dl.fbaipublicfiles.com/detectron2/some/w.pkl"


def test_it_is_a_manager_of_its_own():
    assert PathManager is not g_pathmgr
