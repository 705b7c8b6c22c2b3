"""The images example without child processes and without its servers: decoding, the model, applications, figures."""

from __future__ import annotations

import importlib.util
import io
import json
import pickle
import random
import struct
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

np = pytest.importorskip("numpy")
for package in ("PIL", "skimage", "psutil", "flask", "rich"):
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed; the extra `images` has it", allow_module_level=True)
EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
if not (EXAMPLES / "images").is_dir():
    pytest.skip("the examples are not here", allow_module_level=True)
sys.path.insert(0, str(EXAMPLES))

from images import bench, cli, decode, load, model, photographs, pipeline, report, service  # noqa: E402
from images.decode import SIDE, BadImageError  # noqa: E402
from images.flask_app import create_app  # noqa: E402
from PIL import Image  # noqa: E402

from ubatch.errors import DeadlineExceeded, QueueFull, Stopped, WorkerDied  # noqa: E402

if TYPE_CHECKING:
    from flask.testing import FlaskClient

    from ubatch import Flow

HELD_OUT = 77  # a seed that the model was not trained by


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a trained model is."""
    folder = tmp_path_factory.mktemp("images")
    model.load_model(folder)
    return folder


@pytest.fixture
def classifier(folder: Path) -> model.Classifier:
    return model.Classifier(folder)


@pytest.fixture(scope="module")
def held_out() -> tuple[list[str], Any]:
    """Pieces that the model has not seen, sent as JPEG files: their subjects, and their pixels."""
    drawn = list(photographs.pieces(10 * len(photographs.SUBJECTS), HELD_OUT))
    decoded = decode.decode([photographs.encoded(image) for _, image in drawn])
    return [subject for subject, _ in drawn], np.stack(decoded)


def file(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    written = io.BytesIO()
    image.save(written, kind, **options)
    return written.getvalue()


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png_of_size(width: int, height: int) -> bytes:
    """A PNG that claims to be of that size, and has no pixels."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return decode.KINDS["PNG"] + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


CAT = photographs.encoded(photographs.photograph(photographs.FILES["cat"]))
ROCKET = photographs.encoded(photographs.photograph(photographs.FILES["rocket"]), "PNG")


class TestPhotographs:
    def test_pieces(self) -> None:
        """They are squares, their subjects come in turns, and one seed always gives the same."""
        some, same, others = (list(photographs.pieces(24, seed)) for seed in (1, 1, 2))
        assert [subject for subject, _ in some] == 2 * list(photographs.SUBJECTS)
        assert all(image.mode == "RGB" and image.width == image.height > 150 for _, image in some)
        assert [image.tobytes() for _, image in some] == [image.tobytes() for _, image in same]
        assert all(one.tobytes() != other.tobytes() for (_, one), (_, other) in zip(some, others, strict=True))

    def test_scikit_image_is_not_imported(self, run_python: Any) -> None:
        """Nor is SciPy, by anything that a child process runs."""
        code = f"""
            import sys
            sys.path.insert(0, {str(EXAMPLES)!r})
            from images import decode, model, photographs
            photographs.photograph("coffee.png")
            print({{"skimage", "scipy", "flask", "rich"}} & set(sys.modules))
            """
        assert run_python(code) == "set()\n"

    def test_not_installed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Without scikit-image it is said what is missing."""
        monkeypatch.setattr(photographs, "find_spec", lambda _: None)
        with pytest.raises(FileNotFoundError, match="scikit-image"):
            photographs.folder()


class TestDecode:
    @pytest.mark.parametrize("mode", ["RGB", "L", "CMYK", "RGBA", "P", "LA", "1"])
    def test_colours(self, mode: str) -> None:
        """However its colours are written, an image comes out in RGB from 0 to 1."""
        kinds = [
            kind for kind, modes in (("JPEG", "RGB L CMYK"), ("PNG", "RGB L RGBA P LA 1")) if mode in modes.split()
        ]
        image = Image.new("RGB", (300, 260), (255, 0, 0)).convert(mode)
        expected = np.asarray(image.convert("RGB"), np.float32)[0, 0] / 255
        for kind in kinds:
            (pixels,) = decode.decode([file(image, kind)])
            assert (pixels.shape, pixels.dtype) == ((SIDE, SIDE, 3), np.float32)
            if mode != "1":  # which shows a colour by dots
                assert np.abs(pixels - expected).max() < 0.02
            assert pixels.min() >= 0 and pixels.max() <= 1

    def test_sixteen_bits(self) -> None:
        """A PNG of 16 bits a pixel is as bright as it says."""
        image = Image.fromarray(np.full((250, 250), 0x8000, np.uint16))
        (pixels,) = decode.decode([file(image)])
        assert np.abs(pixels - 0.5).max() < 0.01

    @pytest.mark.parametrize("size", [(1, 1), (3000, 5), (700, 300), (SIDE, SIDE), (2000, 1500)])
    def test_sizes(self, size: tuple[int, int]) -> None:
        """Whatever its size, the middle of an image is scaled to one size."""
        for kind in decode.KINDS:
            (pixels,) = decode.decode([file(Image.new("RGB", size, "white"), kind)])
            assert pixels.shape == (SIDE, SIDE, 3)
            assert pixels.min() > 0.98

    def test_the_middle(self) -> None:
        """What is cut off is as much on either side."""
        image = Image.new("RGB", (600, 200), "black")
        image.paste("white", (200, 0, 400, 200))
        (pixels,) = decode.decode([file(image)])
        assert pixels[:, 3:-3].min() == 1

    def test_turned(self) -> None:
        """An image that says which way up it is to be seen is turned so."""
        image = photographs.photograph("coffee.png")
        exif = Image.Exif()
        exif[0x0112] = 3  # seen upside down
        upright, turned = decode.decode([file(image, "JPEG", quality=95), file(image, "JPEG", quality=95, exif=exif)])
        assert np.abs(upright - turned[::-1, ::-1]).mean() < 0.02

    def test_like_the_training(self) -> None:
        """Of a file the model sees what it saw in training, but for what JPEG loses."""
        for kind, loss in (("PNG", 1e-6), ("JPEG", 0.03)):
            for _, image in photographs.pieces(12, HELD_OUT):
                (pixels,) = decode.decode([photographs.encoded(image, kind)])
                assert np.abs(pixels - decode.pixels(image)).mean() < loss

    @pytest.mark.parametrize(
        ("body", "message", "status"),
        [
            (b"", "empty", 400),
            (b"GIF89a" + bytes(100), "neither a JPEG nor a PNG", 415),
            (b"no image", "neither a JPEG nor a PNG", 415),
            (b"\xff\xd8\xff" + bytes(decode.LONGEST_BODY), "longer than 8000000 bytes", 413),
        ],
    )
    def test_what_is_none(self, body: bytes, message: str, status: int) -> None:
        """What cannot be an image is refused before it is handed on."""
        with pytest.raises(BadImageError, match=message) as caught:
            decode.check(body)
        assert caught.value.status == status

    @pytest.mark.parametrize(
        ("body", "message", "status"),
        [
            (CAT[:-2000], "cannot be read", 400),
            (CAT[:200], "cannot be read", 400),
            (b"\xff\xd8\xff", "cannot be read", 400),
            (ROCKET[: len(ROCKET) // 2], "cannot be read", 400),
            (ROCKET[:100] + bytes(1000) + ROCKET[1100:], "cannot be read", 400),
            (png_of_size(10, 10), "cannot be read", 400),
            (png_of_size(50_000, 50_000), "cannot be read|more than 40000000 pixels", None),
            (png_of_size(8_000, 8_000), "more than 40000000 pixels", 413),
            (png_of_size(0, 5), "cannot be read", 400),
        ],
        ids=["end", "middle", "start", "half", "zeros", "no pixels", "bomb", "too large", "nothing"],
    )
    def test_broken(self, body: bytes, message: str, status: int | None) -> None:
        """A broken file, or one that unpacks to more than there is room for, is refused; its neighbours are not."""
        before, error, after = decode.decode([decode.check(body) and CAT, decode.check(body), ROCKET])
        assert before.shape == after.shape == (SIDE, SIDE, 3)
        assert isinstance(error, BadImageError)
        with pytest.raises(BadImageError, match=message):
            raise error
        assert status in (None, error.status)

    def test_random_damage(self, seed: int) -> None:
        """Whatever is wrong with a file, either it can be read all the same or it is refused."""
        draw = random.Random(seed)
        for _ in range(150):
            body = bytearray(draw.choice([CAT, ROCKET]))
            for _ in range(draw.randint(1, 30)):
                body[draw.randrange(12, len(body))] = draw.randrange(256)
            (decoded,) = decode.decode([bytes(body[: draw.randint(12, len(body))])])
            assert isinstance(decoded, BadImageError) or decoded.shape == (SIDE, SIDE, 3)

    def test_errors_travel(self) -> None:
        """An error that comes from another process has its message and its status."""
        error = pickle.loads(pickle.dumps(BadImageError("too large", 413)))
        assert (str(error), error.status) == ("too large", 413)


class TestModel:
    def test_pieces_that_it_has_not_seen(self, classifier: model.Classifier, held_out: tuple[list[str], Any]) -> None:
        """At least 19 of 20 are recognised, and most of every subject."""
        subjects, images = held_out
        found = [scores[0].label for scores in classifier(images)]
        right = [one == other for one, other in zip(subjects, found, strict=True)]
        assert np.mean(right) >= 0.95
        for subject in photographs.SUBJECTS:
            assert np.mean([hit for hit, each in zip(right, subjects, strict=True) if each == subject]) >= 0.7

    def test_another_photograph(self, classifier: model.Classifier) -> None:
        """The motorcycle is recognised in a photograph taken by another camera, from beside the first."""
        other, draw = photographs.photograph("motorcycle_right.png"), random.Random(HELD_OUT)
        images = np.stack([decode.pixels(photographs.piece(other, draw)) for _ in range(20)])
        assert [scores[0].label for scores in classifier(images)].count("motorcycle") >= 18

    def test_in_company_as_alone(self, classifier: model.Classifier, held_out: tuple[list[str], Any]) -> None:
        """An image has the same scores in a batch as alone; they sum to 1, the best first."""
        images = held_out[1][:16]
        together = classifier(images)
        alone = [classifier(image[None])[0] for image in images]
        for some, others in zip(together, alone, strict=True):
            assert dict(some) == pytest.approx(dict(others), abs=1e-4)
            assert sum(score for _, score in some) == pytest.approx(1, abs=1e-4)
            assert some == sorted(some, key=lambda score: -score.score)

    def test_it_is_small(self, folder: Path) -> None:
        """Its file has less than a megabyte."""
        (kept,) = folder.iterdir()
        assert kept.stat().st_size < 1_000_000


class TestKeeping:
    @pytest.fixture
    def trained(self, monkeypatch: pytest.MonkeyPatch) -> list[model.Model]:
        """What was trained: models of zeros, for which nobody need wait."""
        made: list[model.Model] = []

        def train() -> model.Model:
            made.append(model.Model(*(np.full((2, 2), len(made), np.float32) for _ in range(3))))
            return made[-1]

        monkeypatch.setattr(model, "train", train)
        return made

    def test_trained_once(self, trained: list[model.Model], tmp_path: Path) -> None:
        """The second time it is read, and nothing else is left in its folder."""
        for _ in range(3):
            assert (model.load_model(tmp_path / "new").weights == trained[0].weights).all()
        assert len(trained) == 1
        assert [each.suffix for each in (tmp_path / "new").iterdir()] == [".npz"]

    @pytest.mark.parametrize("damage", [b"", b"no archive", None])
    def test_damaged(
        self, damage: bytes | None, trained: list[model.Model], tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        """A damaged file is told of, trained anew, and replaced."""
        model.load_model(tmp_path)
        (kept,) = tmp_path.iterdir()
        kept.write_bytes(kept.read_bytes()[:-30] if damage is None else damage)
        assert (model.load_model(tmp_path).weights == 1).all()
        assert "trained anew" in caplog.text
        assert (model.load_model(tmp_path).weights == 1).all()
        assert len(trained) == 2

    def test_no_place(self, trained: list[model.Model], tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        """A model that cannot be kept is told of, and used."""
        (tmp_path / "taken").write_text("")
        assert model.load_model(tmp_path / "taken") is trained[0]
        assert "not kept" in caplog.text

    def test_where(self, trained: list[model.Model], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """It is kept where the environment says, and else among the user's caches."""
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
        model.load_model()
        monkeypatch.setenv("IMAGES_CACHE", str(tmp_path / "named"))
        model.load_model()
        assert len(list((tmp_path / "user" / "ubatch-images").iterdir())) == 1
        assert len(list((tmp_path / "named").iterdir())) == 1


@pytest.fixture
def flow(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Flow[bytes, list[model.Score]]]:
    """Both steps in this process."""
    monkeypatch.setenv("IMAGES_CACHE", str(folder))
    service._classifier.cache_clear()
    with pipeline.create_flow(processes=0) as flow:
        yield flow


@pytest.fixture
def client(flow: Flow[bytes, list[model.Score]]) -> FlaskClient:
    return create_app(flow).test_client()


class TestApp:
    @pytest.mark.parametrize("path", bench.ENDPOINTS.values())
    def test_labels(self, client: FlaskClient, path: str) -> None:
        """A photograph is answered with its subject first."""
        for body, subject in ((CAT, "cat"), (ROCKET, "rocket")):
            answered = client.post(path, data=body)
            assert answered.status_code == 200
            labels = answered.get_json()["labels"]
            assert len(labels) == 3
            assert labels[0]["label"] == subject and labels[0]["score"] > 0.5

    @pytest.mark.parametrize("path", bench.ENDPOINTS.values())
    @pytest.mark.parametrize(
        ("body", "status"), [(b"", 400), (b"text", 415), (CAT[:999], 400), (b"\xff\xd8\xff" * 3_000_000, 413)]
    )
    def test_bad_images(self, client: FlaskClient, path: str, body: bytes, status: int) -> None:
        """What is no image is refused, with the reason."""
        answered = client.post(path, data=body)
        assert answered.status_code == status
        assert list(answered.get_json()) == ["error"]

    def test_other_addresses(self, client: FlaskClient) -> None:
        """What is not served is told of in JSON too."""
        assert client.get("/classify").status_code == 405
        assert "error" in client.get("/nothing").get_json()

    def test_stats(self, client: FlaskClient) -> None:
        """The steps are shown, with what each has done."""
        client.post("/classify", data=CAT)
        client.post("/classify", data=CAT[:999])
        shown = client.get("/stats").get_json()
        assert [step["name"] for step in shown["steps"]] == ["images.decode", "images.classify"]
        assert [step["items"] for step in shown["steps"]] == [2, 1]
        assert client.get("/health").get_json() == {
            "status": "ok",
            "children": {"images.decode": 0, "images.classify": 0},
        }

    @pytest.mark.parametrize(
        ("error", "status", "said"),
        [
            (QueueFull("images", 9), 503, "overloaded"),
            (DeadlineExceeded("images", 9), 503, "overloaded"),
            (WorkerDied("decode", "signal 9"), 503, "try again"),
            (Stopped("images"), 503, "try again"),
            (BadImageError("no cat", 415), 415, "no cat"),
        ],
    )
    def test_refusals(
        self, client: FlaskClient, error: Exception, status: int, said: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Each failure has its status, and a client that may try again is told when."""

        def fail(*_: object) -> Any:
            raise error

        monkeypatch.setattr("images.flask_app.classify_here", fail)
        answered = client.post("/classify_here", data=CAT)
        assert answered.status_code == status
        assert said in answered.get_json()["error"]
        assert ("Retry-After" in answered.headers) == (status == 503)


def sample(endpoint: str, clients: int, rate: float, **failures: int) -> bench.Sample:
    sizes = {"images.decode": 2.0, "images.classify": 5.0} if endpoint == "flow" else {}
    return bench.Sample(endpoint, clients, rate, 0.1, 0.2, 0.03, 0.004, sizes, 0.99, failures)


class TestBench:
    @pytest.mark.parametrize(
        ("others", "alike"),
        [
            ([("cat", 0.7), ("coffee", 0.2)], True),
            ([("cat", 0.70001), ("coffee", 0.2)], True),
            ([("coffee", 0.2), ("cat", 0.7)], True),
            ([("cat", 0.71), ("coffee", 0.2)], False),
            ([("cat", 0.7), ("coins", 0.2)], False),
            ([("cat", 0.7)], False),
        ],
    )
    def test_same(self, others: list[tuple[str, float]], alike: bool) -> None:
        """Answers are compared label by label, scores with tolerance."""
        some, labels = (
            [{"label": label, "score": score} for label, score in pairs]
            for pairs in ([("cat", 0.7), ("coffee", 0.2)], others)
        )
        assert bench.same(some, labels) is alike

    def test_the_same_load(self) -> None:
        """A job that travels as JSON asks for the same images."""
        job = load.Job("127.0.0.1", 1, "/", 2, images=3, seed=5)
        again = load.Job(**json.loads(json.dumps(job.__dict__)))
        assert again == job

    def test_figures(self, tmp_path: Path) -> None:
        """Medians, ratios by round, and what went wrong, in the table and in the file."""
        samples = [sample("here", 8, rate) for rate in (100, 50)] + [sample("flow", 8, rate) for rate in (300, 50)]
        found = bench.Measured(samples, 20, 0)
        assert found.is_right
        assert (found.throughput(8).median, found.throughput(8).least, found.throughput(8).most) == (2, 1, 3)
        assert found.size("images.classify", 8) == 5
        said = report.findings(found, [8])
        assert said == [
            "With 8 clients the flow serves 2.00 times the requests/s of the request's own thread (1.00 to 3.00); "
            "9 of 10 other requests take at most 4 ms meanwhile, rather than 4 ms.",
            "Both endpoints classified 20 images, all alike.",
            "99% of the images had their subject for the first label.",
        ]
        assert report.table(found, [8], "title").row_count == 2
        report.write_figures(tmp_path / "figures.json", found, [8], {"rounds": 2})
        figures = json.loads((tmp_path / "figures.json").read_text())
        assert [row["requests_per_second"] for row in figures["medians"]] == [75, 175]
        assert figures["flow over here"]["8"]["median"] == 2
        assert len(figures["samples"]) == 4

    def test_what_is_wrong(self) -> None:
        """Failures and answers that differ are told of, and make a run fail."""
        lost = bench.Measured([sample("here", 1, 1), sample("flow", 1, 1, lost=3)], 5, 0)
        differing = bench.Measured([sample("here", 1, 1), sample("flow", 1, 1)], 5, 2)
        assert not lost.is_right and not differing.is_right
        assert report.findings(lost, [1])[-1] == "3 requests failed (lost)."
        assert "2 of them differently" in report.findings(differing, [1])[1]


def test_live_steps() -> None:
    """Each step has a line with its children, those that are dead too; one that has none shows the rest."""
    times = {"count": 1, "mean": 0.001, "p50": 0.001, "p90": 0.002, "p99": 0.003}
    step = {"name": "images.decode", "queued": 3, "items": 10, "size": times, "wait": times}
    children = [(7, True, 2**25), (8, False, 0), (0, False, 0)]
    processes = {"transfer": times, "handling": times, "sent": 10**7, "received": 10**8}
    processes["children"] = [dict(zip(("pid", "alive", "memory"), child, strict=True)) for child in children]
    both = [{**step, "processes": processes}, {**step, "name": "images.classify", "processes": None}]
    from rich.console import Console

    console = Console(file=io.StringIO(), width=80)
    console.print(report.steps({"pid": 5, "steps": both}))
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert all(
        said in shown
        for said in ("process 5", "decode", "classify", "1.0", "3.0", "10", "100", "7: 32", "8: dead", "not started")
    )


class TestCommandLine:
    def test_missing_packages(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        """Packages that are not installed are named, with the command that installs them."""
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in ("skimage", "gevent") else name)
        assert cli.main(["--server", "gevent"]) == 1
        shown = capsys.readouterr().err
        assert "Not installed: skimage, gevent." in shown
        assert "pip install '.[images]'" in shown

    @pytest.mark.parametrize(
        "options", [["--rounds", "0"], ["--clients", "8", "-1"], ["--images", "x"], ["--server", "y"]]
    )
    def test_wrong_options(self, options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
        """Options out of range are refused before anything starts."""
        with pytest.raises(SystemExit) as caught:
            cli.main(options)
        assert caught.value.code == 2
        assert options[0] in capsys.readouterr().err
