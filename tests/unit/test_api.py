from unike import api
from unike.editors.common.anchors import Anchors


def test_an_empty_set_of_anchors_is_not_the_default(monkeypatch):
    default = Anchors([])
    monkeypatch.setattr(api, "default_anchors", lambda: default)
    none = Anchors([])
    assert api.make_editor("unike", anchors=none).anchors is none
    assert api.make_editor("unike").anchors is default
