"""What can be loaded, what cannot, and what is said of it."""

from __future__ import annotations

import pytest

from headrace.engine.engine import ModelControl
from headrace.errors import LoadFailed
from tests.triton.far import DOUBLES, Triton, write_model
from tests.triton.here import Here, reason_of, rows
from tools.ports import free_port


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"model": "decoupled"}, "answers a request several times"),
        ({"model": "sequential"}, "sequences are kept by one server"),
        ({"model": "absent"}, "load it there, then here again"),
        ({"version": "7"}, "load it there, then here again"),
        ({"version": "new"}, "parameter 'version' is 'new', expected a number"),
        ({"shared_memory": "yes"}, "parameter 'shared_memory' is 'yes', expected auto or off"),
        ({"run_timeout_s": "soon"}, "parameter 'run_timeout_s' is 'soon'; it must be seconds"),
        ({"tls": "maybe"}, "parameter 'tls' is 'maybe', expected on or off"),
        ({"tls_key": "key.pem"}, "'tls_certificate' and 'tls_key' go together"),
        ({"tls_ca": "absent.pem"}, "parameter 'tls_ca' names 'absent.pem', which cannot be read"),
        ({"config": "max_batch_size: 17"}, "takes 16 rows; set it to 16 or less"),
        ({"config": "sequence_batching { }"}, "sequences are kept by one server"),
        ({"config": 'input { name: "x" data_type: TYPE_INT32 dims: 4 }'}, "TYPE_INT32"),
    ],
)
def test_what_cannot_be_served_says_why(here: Here, far: Triton, settings: dict[str, str], told: str) -> None:
    here.add("doubles", far.url, **settings)
    assert told in reason_of(here.engine(), "doubles")


@pytest.mark.parametrize("url", ["", "127.0.0.1", "http://127.0.0.1:8001"])
def test_an_address_that_is_none(here: Here, url: str) -> None:
    here.add("doubles", url)
    assert f"parameter 'url' is '{url}'; it must be where the Triton listens" in reason_of(here.engine(), "doubles")


def test_nobody_is_there(here: Here) -> None:
    url = f"127.0.0.1:{free_port()}"
    here.add("doubles", url, connect_timeout_s="0.1")
    assert f"no Triton answers at {url}" in reason_of(here.engine(), "doubles")


def test_a_model_that_changed_says_so_and_can_be_loaded_again(here: Here, far: Triton) -> None:
    """Shapes change there while it is loaded here; it is noticed by the first request that does not suit any more."""
    body = "return self.give(y=self.of(request) * 2)"
    write_model(far.repository, "changing", DOUBLES, body)
    here.add("changing", far.url)
    with far.client() as client:
        client.load_model("changing")
        engine = here.engine(control=ModelControl("explicit", load=("changing",)))
        assert (engine.infer("changing", {"x": rows(1)})["y"] == 2 * rows(1)).all()
        serving = next(iter(engine.catalog.running()))
        engine.load("changing")
        assert next(iter(engine.catalog.running())) is serving, "nothing has changed"

        write_model(far.repository, "changing", DOUBLES.replace("dims: 4", "dims: 3"), body)
        client.load_model("changing")
        told = r"input 'x' was FP32\[-1,4\] and is FP32\[-1,3\]; load 'changing' again"
        with pytest.raises(Exception, match=told):
            engine.infer("changing", {"x": rows(1)})
        with pytest.raises(Exception, match=told):
            engine.infer("changing", {"x": rows(1)})
        engine.load("changing")
        assert (engine.infer("changing", {"x": rows(1)[:, :3]})["y"] == 2 * rows(1)[:, :3]).all()

        client.unload_model("changing")
        engine.unload("changing")
        with pytest.raises(LoadFailed, match="load it there, then here again"):
            engine.load("changing")


def test_another_version_of_the_same_shape_goes_on(here: Here, far: Triton) -> None:
    write_model(far.repository, "versions", DOUBLES, "return self.give(y=self.of(request) * 2)")
    here.add("versions", far.url)
    with far.client() as client:
        client.load_model("versions")
        engine = here.engine()
        assert (engine.infer("versions", {"x": rows(1)})["y"] == 2 * rows(1)).all()
        write_model(far.repository, "versions", DOUBLES, "return self.give(y=self.of(request) * 3)", version=2)
        client.load_model("versions")
        assert (engine.infer("versions", {"x": rows(1)})["y"] == 3 * rows(1)).all()
        assert (engine.infer("versions", {"x": rows(1)})["y"] == 3 * rows(1)).all()
        client.unload_model("versions")
