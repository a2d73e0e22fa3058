"""A release: what is in it, and that its verification notices every change."""

from __future__ import annotations

import hashlib
import io
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from PIL import Image

import privimage as package
from privimage.privacy.budget import spent_by
from privimage.privacy.entropy import InsecureRandomForTests
from privimage.release.code import code_digest
from privimage.release.datasheet import front_matter
from privimage.release.export import SUMS, sums
from privimage.release.signature import SIGNATURE
from privimage.running.runner import run_all
from tests.pipeline_fixtures import Answer, Place

FILES = ["README.md", "SHA256SUMS", "certificate.json", "report.html", "samples.png", "synthetic.parquet"]


@pytest.fixture(autouse=True)
def _far_from_any_store(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Where `verify` is called there is no store that it would look into by itself."""
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    monkeypatch.delenv("PRIVIMAGE_STORE", raising=False)


@pytest.fixture
def release(finished: Place, tmp_path: Path) -> Path:
    """A copy of the finished run's release folder, far from its store."""
    return Path(shutil.copytree(finished.release, tmp_path / "handed-on"))


@pytest.fixture
def verify(privimage: Callable[..., Answer]) -> Callable[..., tuple[int, dict[str, str]]]:
    """Exit code of `privimage verify`, and the outcome of each step."""

    def call(folder: Path, store: Path | None = None) -> tuple[int, dict[str, str]]:
        answer = privimage("verify", folder, *(("--store", store) if store else ()), "--json")
        found = json.loads(answer.out)
        assert found["verified"] == (answer.code == 0)
        return answer.code, {check["step"]: check["outcome"] for check in found["checks"]}

    return call


Verify = Callable[..., tuple[int, dict[str, str]]]


def test_it_holds_the_images_the_certificate_the_report_and_their_sums(finished: Place) -> None:
    assert sorted(file.name for file in finished.release.iterdir()) == FILES


def test_it_is_verified_in_every_step_with_the_ledger_at_hand(finished: Place, verify: Verify) -> None:
    code, steps = verify(finished.release, finished.folder)
    assert code == 0
    assert set(steps.values()) == {"passed"}
    assert {"files", "certified files", "promise", "epsilon", "second accountant", "ledger", "code"} <= set(steps)


def test_without_the_store_its_steps_are_skipped_and_the_first_line_says_what_is_not_proven(
    release: Path, verify: Verify, privimage: Callable[..., Answer]
) -> None:
    code, steps = verify(release)
    assert code == 0
    assert (steps.pop("ledger"), steps.pop("store")) == ("skipped", "skipped")
    assert set(steps.values()) == {"passed"}
    told = privimage("verify", release).out.splitlines()
    assert told[0].startswith(
        "Not proven: without the store that made it, or its steward's signature, a release that was made up"
    )
    assert told[-1] == "Consistent with itself, and no more."


def test_a_store_that_is_not_there_is_an_error_and_is_not_made(
    release: Path, privimage: Callable[..., Answer], tmp_path: Path
) -> None:
    answer = privimage("verify", release, "--store", tmp_path / "absent")
    assert answer.code == 2 and "No store at" in answer.complaint
    assert not (tmp_path / "absent").exists()


def test_a_certificate_alone_is_verified_but_for_the_files(
    finished: Place, verify: Verify, privimage: Callable[..., Answer], tmp_path: Path
) -> None:
    alone = shutil.copy(finished.release / "certificate.json", tmp_path / "handed-out.json")
    for store, open_steps in ((finished.folder, {"files"}), (None, {"files", "ledger", "store"})):
        code, steps = verify(alone, store)
        assert code == 0
        assert {step for step, outcome in steps.items() if outcome == "skipped"} == open_steps
        assert {"promise", "epsilon", "second accountant", "code", "private side"} <= {
            s for s, o in steps.items() if o == "passed"
        }
        assert "certified files" not in steps
    told = privimage("verify", alone, "--store", finished.folder).out
    assert "The certificate is verified; whether any images are those" in told and "\nVerified." not in told


@pytest.mark.parametrize("text", ["", "[]", "{}", "no JSON", None])
def test_a_certificate_alone_that_is_none_or_says_too_little_fails(
    finished: Place, verify: Verify, tmp_path: Path, text: str | None
) -> None:
    if text is None:
        certificate = json.loads((finished.release / "certificate.json").read_text())
        text = json.dumps(certificate | {"epsilon": certificate["epsilon"] / 2})
    (tmp_path / "other.json").write_text(text)
    code, steps = verify(tmp_path / "other.json", finished.folder)
    assert code == 1
    assert "failed" in (steps.get("certificate"), steps.get("epsilon"))


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("place", [0.0, 0.5, 0.99])
def test_one_changed_byte_in_any_file_fails(release: Path, verify: Verify, name: str, place: float) -> None:
    data = bytearray((release / name).read_bytes())
    data[int(place * len(data))] ^= 1
    (release / name).write_bytes(data)
    code, steps = verify(release)
    assert code == 1
    assert steps["files"] == "failed"


@pytest.mark.parametrize("name", sorted({*FILES} - {"SHA256SUMS"}))
def test_a_missing_file_fails(release: Path, verify: Verify, name: str) -> None:
    (release / name).unlink()
    code, steps = verify(release)
    assert code == 1
    assert steps["files"] == "failed"


def test_an_added_file_fails(release: Path, verify: Verify) -> None:
    (release / "more.txt").write_text("not part of it")
    code, steps = verify(release)
    assert code == 1
    assert (steps["files"], steps["certified files"]) == ("failed", "failed")


def test_a_folder_without_sums_is_no_release(release: Path, privimage: Callable[..., Answer]) -> None:
    (release / "SHA256SUMS").unlink()
    answer = privimage("verify", release)
    assert answer.code == 2
    assert "is no release" in answer.complaint


def rewritten(release: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the certificate and make all sums fit again, as a careful forger would."""
    certificate = json.loads((release / "certificate.json").read_text())
    change(certificate)
    (release / "certificate.json").write_text(json.dumps(certificate, indent=1, sort_keys=True))
    files = {name: (release / name).read_bytes() for name in FILES if name != SUMS}
    (release / SUMS).write_bytes(sums(files))


def test_a_smaller_epsilon_than_the_mechanisms_cost_fails(release: Path, verify: Verify) -> None:
    rewritten(release, lambda certificate: certificate.update(epsilon=0.5))
    code, steps = verify(release)
    assert code == 1
    assert steps["files"] == "passed"
    assert steps["epsilon"] == "failed"


def test_a_mechanism_that_is_left_out_fails(release: Path, verify: Verify) -> None:
    rewritten(release, lambda certificate: certificate["mechanisms"].pop())
    assert verify(release)[1]["epsilon"] == "failed"


def test_more_noise_than_the_ledger_knows_fails(release: Path, finished: Place, verify: Verify) -> None:
    def quieter(certificate: dict[str, Any]) -> None:
        certificate["mechanisms"][0]["event"]["noise_multiplier"] *= 1.001

    rewritten(release, quieter)
    code, steps = verify(release, finished.folder)
    assert code == 1
    assert steps["ledger"] == "failed"


@pytest.mark.parametrize(
    ("change", "step"),
    [
        ({"epsilon": 2.0}, "ledger"),
        ({"delta": 2e-4}, "ledger"),
        ({"delta": 0.4}, "promise"),
        ({"num_training_images": 1_000_000}, "promise"),
        ({"num_training_images": 142}, "ledger"),
        ({"unit": "one hospital"}, "promise"),
        ({"relation_in_words": "whatever"}, "promise"),
        ({"artifacts": {"query": "0" * 64, "finetune": "0" * 64}}, "ledger"),
        ({"plan": {"id": "plan-of-another-run", "builds_on": []}}, "ledger"),
        pytest.param({"ledger.granted_in_all.epsilon": 1.0}, "ledger", id="another-grant"),
        ({"ledger.spent_in_all.epsilon": 0.1}, "ledger"),
        ({"ledger.spent_in_all.delta": 0.0}, "ledger"),
        ({"ledger.entries": []}, "ledger"),
        ({"ledger.entries.0.kind": "void"}, "ledger"),
        ({"ledger.entries.1.sha256": "0" * 64}, "ledger"),
        pytest.param({"mechanisms.0.in_words": "a lot of noise"}, "epsilon", id="other-words"),
        ({"mechanisms.1.epsilon_alone": 0.01}, "epsilon"),
        ({"files": []}, "certificate"),
        ({"mechanisms": [{"event": {"event": "LaplaceDpEvent"}}]}, "certificate"),
    ],
)
def test_a_forged_statement_fails_though_all_sums_fit(
    release: Path, finished: Place, verify: Verify, change: dict[str, Any], step: str
) -> None:
    def forged(certificate: dict[str, Any]) -> None:
        for path, value in change.items():
            *way, last = path.split(".")
            place: Any = certificate
            for name in way:
                place = place[int(name) if name.isdigit() else name]
            assert place[last] != value
            place[last] = value

    rewritten(release, forged)
    code, steps = verify(release, finished.folder)
    assert code == 1
    assert steps[step] == "failed"


def outcome(verify: Verify, release: Path, place: Place) -> set[str]:
    """The steps that fail."""
    code, steps = verify(release, place.folder)
    failed = {step for step, found in steps.items() if found == "failed"}
    assert bool(code) == bool(failed)
    return failed


def training_images_as_release(certificate: dict[str, Any], release: Path, place: Place) -> None:
    (release / "synthetic.parquet").write_bytes(place.payload("admit", "train-00000.parquet").read_bytes())


def entries_cut(certificate: dict[str, Any], release: Path, place: Place) -> None:
    own = [mechanism["ledger_entry"]["sequence"] for mechanism in certificate["mechanisms"]]
    certificate["ledger"]["entries"] = certificate["ledger"]["entries"][: max(own) + 1]
    then = spent_by(place.entries[: max(own) + 1])
    certificate["ledger"]["spent_in_all"] = {"epsilon": then.epsilon, "delta": then.delta}


def renamed_ledger(certificate: dict[str, Any], release: Path, place: Place) -> None:
    certificate["ledger"]["dataset"] = "0" * 32


def other_report(certificate: dict[str, Any], release: Path, place: Place) -> None:
    report = release / "report.html"
    report.write_text(report.read_text().replace("</body>", "<p>These images show nobody.</p></body>"))


def stated(name: str, value: Any) -> Callable[[dict[str, Any], Path, Place], None]:
    def change(certificate: dict[str, Any], release: Path, place: Place) -> None:
        assert certificate[name] != value
        certificate[name] = value

    change.__name__ = name
    return change


@pytest.mark.parametrize(
    "forge",
    [
        training_images_as_release,
        entries_cut,
        renamed_ledger,
        other_report,
        stated("assumptions", ["None."]),
        stated("name", "another"),
        stated("config_sha256", "0" * 64),
        stated("code", {"privimage": "9.9", "sha256": "0" * 64, "covers": "", "stages": {}}),
        stated("packages", {"torch": "9.9"}),
        stated("accountant", "by hand"),
    ],
    ids=lambda forge: forge.__name__,
)
def test_what_the_store_did_not_publish_is_not_verified_though_every_digest_fits(
    release: Path, finished: Place, verify: Verify, forge: Callable[[dict[str, Any], Path, Place], None]
) -> None:
    """Each of these was "Verified." when digests were compared with the certificate alone."""
    assert outcome(verify, release, finished) == set()
    certificate = json.loads((release / "certificate.json").read_text())
    forge(certificate, release, finished)
    certificate["files"] = {
        name: hashlib.sha256((release / name).read_bytes()).hexdigest()
        for name in FILES
        if name not in (SUMS, "certificate.json")
    }
    rewritten(release, lambda found: (found.clear(), found.update(certificate)))
    assert "store" in outcome(verify, release, finished)
    alone = shutil.copy(release / "certificate.json", release.parent / "alone.json")
    assert "store" in outcome(verify, Path(alone), finished)


def test_noise_that_somebody_can_make_again_is_not_certified_by_an_edited_word(
    pretrained_copy: Place, verify: Verify, tmp_path: Path
) -> None:
    place = pretrained_copy
    run_all(place.run(insecure=InsecureRandomForTests(0)))
    assert [entry.body["guarantee"] for entry in place.entries if entry.kind == "reserve"] == [True, False]
    release = Path(shutil.copytree(place.release, tmp_path / "handed-on"))
    for name in ("README.md", "report.html"):
        text = (release / name).read_text()
        (release / name).write_text(text.replace("none", "differential privacy"))
    rewritten(release, lambda certificate: certificate.update(guarantee="differential privacy"))
    assert {"ledger", "store"} <= outcome(verify, release, place)


def test_entries_about_its_own_mechanisms_that_are_left_out_are_missed(
    release: Path, finished: Place, privimage: Callable[..., Answer]
) -> None:
    def forged(certificate: dict[str, Any]) -> None:
        entries_cut(certificate, release, finished)

    rewritten(release, forged)
    told = privimage("verify", release, "--store", finished.folder).out
    assert "failed   ledger:" in told and "entry 4 is about its own mechanisms, and was left out" in told


def test_an_artifact_that_says_that_its_noise_can_be_made_again_does_not_verify(
    pretrained_copy: Place, privimage: Callable[..., Answer]
) -> None:
    place = pretrained_copy
    run_all(place.run(insecure=InsecureRandomForTests(0)))
    told = privimage("verify", place.release, "--store", place.folder).out
    assert "failed   store: the noise of its finetune can be made again: it says guarantee 'none'" in told


def test_an_unrelated_store_does_not_verify_it(
    release: Path, granted: Place, verify: Verify, privimage: Callable[..., Answer]
) -> None:
    assert outcome(verify, release, granted) == {"ledger", "store"}
    told = privimage("verify", release, "--store", granted.folder).out
    assert "the store published no such release" in told


# ------------------------------------------------------------------------------------------------------- signature


@pytest.fixture
def key(tmp_path: Path) -> Path:
    """A new Ed25519 key, as OpenSSH writes it; its public half is beside it."""
    private = Ed25519PrivateKey.generate()
    file = tmp_path / "steward"
    file.write_bytes(private.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()))
    public = private.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
    file.with_suffix(".pub").write_bytes(public + b" steward\n")
    return file


def test_a_signed_release_is_verified_by_a_recipient_without_the_store(
    release: Path, key: Path, privimage: Callable[..., Answer], tmp_path: Path
) -> None:
    assert privimage("sign", release, "--key", key).code == 0
    assert (release / SIGNATURE).is_file()
    for signer in (key.with_suffix(".pub"), key.with_suffix(".pub").read_text()):
        answer = privimage("verify", release, "--signer", signer)
        assert answer.code == 0 and answer.out.splitlines()[0].startswith("passed   signature:")
        assert answer.out.endswith("\nVerified.\n")
    assert privimage("verify", release).out.startswith("Not proven")
    alone = shutil.copytree(release, tmp_path / "alone") / "certificate.json"
    assert privimage("verify", alone, "--signer", key.with_suffix(".pub")).code == 0


def test_a_signature_of_another_certificate_or_key_or_none_fails(
    release: Path, key: Path, privimage: Callable[..., Answer], tmp_path: Path
) -> None:
    public = key.with_suffix(".pub")
    assert "there is no certificate.json.sig" in privimage("verify", release, "--signer", public).out
    assert privimage("sign", release, "--key", key).code == 0
    other = Ed25519PrivateKey.generate().public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()
    answer = privimage("verify", release, "--signer", other)
    assert answer.code == 1 and "it was made by another key" in answer.out
    rewritten(release, lambda certificate: certificate.update(name="another"))
    answer = privimage("verify", release, "--signer", public)
    assert answer.code == 1 and "it is of another certificate" in answer.out
    (release / SIGNATURE).write_text("-----BEGIN SSH SIGNATURE-----\nAAAA\n-----END SSH SIGNATURE-----\n")
    assert "it is no SSH signature" in privimage("verify", release, "--signer", public).out
    assert privimage("verify", release, "--signer", "no key").code == 2
    assert privimage("sign", release, "--key", public).code == 2


@pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="OpenSSH is not on this machine")
def test_openssh_checks_our_signature_and_we_check_one_of_openssh(
    release: Path, key: Path, privimage: Callable[..., Answer], tmp_path: Path
) -> None:
    def keygen(*arguments: str | Path, given: bytes | None = None) -> int:
        return subprocess.run(["ssh-keygen", "-Y", *map(str, arguments)], input=given, capture_output=True).returncode

    key.chmod(0o600)
    public = key.with_suffix(".pub")
    (tmp_path / "allowed").write_text(f"steward {public.read_text()}")
    certificate = release / "certificate.json"
    check = ("verify", "-f", tmp_path / "allowed", "-I", "steward", "-n", "privimage", "-s", release / SIGNATURE)
    assert privimage("sign", release, "--key", key).code == 0
    assert keygen(*check, given=certificate.read_bytes()) == 0
    assert keygen(*check, given=certificate.read_bytes() + b" ") != 0
    (release / SIGNATURE).unlink()
    assert keygen("sign", "-f", key, "-n", "privimage", certificate) == 0
    assert privimage("verify", release, "--signer", public).code == 0


@pytest.mark.parametrize("side", ["lower", "upper"])
@pytest.mark.parametrize("factor", [0.99, 1.01, None])
def test_an_interval_that_the_second_accountant_does_not_find_fails(
    release: Path, verify: Verify, side: str, factor: float | None
) -> None:
    def forged(certificate: dict[str, Any]) -> None:
        interval = certificate["epsilon_certified_interval"]
        interval[side] = interval[side] * factor if factor else None

    rewritten(release, forged)
    code, steps = verify(release)
    assert code == 1
    assert steps["second accountant"] == "failed"


def test_a_computed_epsilon_that_is_not_the_mechanisms_fails(release: Path, verify: Verify) -> None:
    rewritten(release, lambda certificate: certificate.update(epsilon_computed=0.99 * certificate["epsilon_computed"]))
    assert verify(release)[1]["epsilon"] == "failed"


def test_without_opacus_the_second_accountant_is_skipped_and_said_to_be(
    release: Path, privimage: Callable[..., Answer], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "privimage.privacy.crosscheck", None)
    answer = privimage("verify", release)
    assert answer.code == 0
    assert "skipped  second accountant: the independent accountant (Opacus) cannot be loaded here" in answer.out


def test_the_certificate_names_the_code_that_wrote_it_and_that_made_the_artifacts(finished: Place) -> None:
    code = json.loads((finished.release / "certificate.json").read_text())["code"]
    assert (code["privimage"], code["sha256"]) == (package.__version__, code_digest())
    assert code["stages"] == {"query": code_digest(), "finetune": code_digest()}


def test_the_digest_of_the_configuration_is_checked_where_the_file_is_given(
    finished: Place, privimage: Callable[..., Answer]
) -> None:
    def configuration(*more: str) -> tuple[int, str]:
        answer = privimage("verify", finished.release, "--store", finished.folder, "--config", finished.config, *more)
        (line,) = [line for line in answer.out.splitlines() if "configuration:" in line]
        return answer.code, line

    code, line = configuration()
    assert (code, line.split()[0]) == (0, "passed")
    code, line = configuration("--set", "performance.physical_batch_size=7")
    assert (code, line.split()[0]) == (0, "passed")
    code, line = configuration("--set", "generator.finetune.learning_rate=0.1")
    assert (code, line.split()[0]) == (1, "failed")
    assert "another digest" in line


def test_other_code_is_told_and_not_failed(
    release: Path, privimage: Callable[..., Answer], verify: Verify, tmp_path: Path
) -> None:
    def older(certificate: dict[str, Any]) -> None:
        certificate["code"] = {**certificate["code"], "privimage": "0.0.9", "sha256": "ab" * 32}

    assert "the code that checks it now" in privimage("verify", release).out
    rewritten(release, older)
    assert verify(release)[1]["code"] == "passed"
    told = privimage("verify", release).out
    assert "written by privimage 0.0.9 (code sha256 abababababababab…)" in told
    assert f"checked by {package.__version__} ({code_digest()[:16]}…); other code ran finetune, query" in told


def test_the_digest_of_the_code_changes_with_every_file_its_bytes_and_its_name(tmp_path: Path) -> None:
    def copied(name: str) -> Path:
        ignored = shutil.ignore_patterns("__pycache__")
        return Path(shutil.copytree(Path(package.__file__).parent, tmp_path / name, ignore=ignored))

    assert code_digest(copied("same")) == code_digest()
    changes: list[Callable[[Path], object]] = [
        lambda folder: (folder / "privacy" / "poisson.py").write_text("# changed"),
        lambda folder: (folder / "privacy" / "poisson.py").rename(folder / "privacy" / "coins.py"),
        lambda folder: (folder / "privacy" / "poisson.py").unlink(),
        lambda folder: (folder / "more.py").write_text(""),
    ]
    digests = {code_digest()}
    for number, change in enumerate(changes):
        folder = copied(f"changed-{number}")
        change(folder)
        digests.add(code_digest(folder))
    assert len(digests) == len(changes) + 1


def test_a_release_with_often_cut_batches_has_no_interval_and_says_why_at_every_place(
    pretrained_copy: Place, verify: Verify, privimage: Callable[..., Answer]
) -> None:
    place = pretrained_copy
    run_all(place.run("generator.finetune.largest_batch_size=36"))
    certificate = json.loads((place.release / "certificate.json").read_text())
    interval = certificate["epsilon_certified_interval"]
    assert (interval["lower"], interval["upper"]) == (None, None)
    assert "does not know batches with a cap" in interval["absent_because"]
    assert certificate["epsilon_computed"] <= certificate["epsilon"]
    assert any("cut to a random subset" in assumption for assumption in certificate["assumptions"])
    assert "cut at random to at most 36 of 144 images" in certificate["mechanisms"][1]["in_words"]
    assert "does not know batches with a cap" in (place.release / "report.html").read_text()
    code, steps = verify(place.release, place.folder)
    assert code == 0
    assert steps.pop("second accountant") == "skipped"
    assert set(steps.values()) == {"passed"}
    told = privimage("verify", place.release, "--store", place.folder).out
    assert "epsilon rests on the first accountant alone" in told


def test_a_release_whose_cap_is_hardly_ever_reached_is_verified_in_every_step(
    pretrained_copy: Place, verify: Verify
) -> None:
    place = pretrained_copy
    run_all(place.run("generator.finetune.largest_batch_size=90"))
    interval = json.loads((place.release / "certificate.json").read_text())["epsilon_certified_interval"]
    assert interval["lower"] < interval["upper"]
    code, steps = verify(place.release, place.folder)
    assert code == 0
    assert set(steps.values()) == {"passed"}


def test_the_query_s_entry_in_the_place_of_fine_tuning_s_fails(release: Path, finished: Place, verify: Verify) -> None:
    def cheaper(certificate: dict[str, Any]) -> None:
        query = certificate["mechanisms"][0]
        certificate["mechanisms"] = [query, {**query, "stage": "finetune"}]
        certificate["epsilon_certified_interval"]["lower"] = 0.0

    rewritten(release, cheaper)
    code, steps = verify(release, finished.folder)
    assert code == 1
    assert steps["epsilon"] == "failed"
    assert steps["ledger"] == "failed"


def test_the_release_of_a_store_whose_ledger_is_gone_fails(finished_copy: Place, verify: Verify) -> None:
    shutil.rmtree(finished_copy.folder / "ledger")
    code, steps = verify(finished_copy.release, finished_copy.folder)
    assert code == 1
    assert steps["ledger"] == "failed"


def test_a_file_with_a_strange_name_fails_and_is_no_crash(release: Path, verify: Verify) -> None:
    (release / "a copy.png").write_bytes(b"")
    code, steps = verify(release)
    assert code == 1
    assert steps["files"] == "failed"


def test_an_edited_ledger_entry_fails(finished_copy: Place, verify: Verify) -> None:
    entry = finished_copy.folder / "ledger" / finished_copy.ledger.dataset_id / "entries" / "000003.json"
    text = entry.read_text()
    entry.write_text(text.replace('"run": "tiny"', '"run": "tidy"'))
    assert entry.read_text() != text
    code, steps = verify(finished_copy.release, finished_copy.folder)
    assert code == 1
    assert steps.pop("ledger") == "failed"
    assert set(steps.values()) == {"passed"}


def test_the_certificate_states_the_configured_promise_and_both_mechanisms(finished: Place) -> None:
    certificate = json.loads((finished.release / "certificate.json").read_text())
    privacy = finished.run().config.privacy
    assert (certificate["epsilon"], certificate["delta"]) == (privacy.epsilon, privacy.delta)
    assert certificate["guarantee"] == "differential privacy"
    assert [mechanism["stage"] for mechanism in certificate["mechanisms"]] == ["query", "finetune"]
    interval = certificate["epsilon_certified_interval"]
    assert interval["lower"] <= certificate["epsilon_computed"] <= certificate["epsilon"]
    assert certificate["epsilon_computed"] <= interval["upper"] <= 1.002 * interval["lower"]
    assert any("Poisson sampling" in assumption for assumption in certificate["assumptions"])
    assert certificate["num_training_images"] == 144


def test_the_images_are_parquet_that_hugging_face_reads_with_class_names(finished: Place) -> None:
    table = pq.read_table(finished.release / "synthetic.parquet")
    assert table.num_rows == 40
    features = json.loads(table.schema.metadata[b"huggingface"])["info"]["features"]
    assert features["image"]["_type"] == "Image"
    assert features["label"]["names"] == ["anna", "berta", "carla"]
    assert sorted(table["label"].value_counts().field("counts").to_pylist()) == [13, 13, 14]
    for row in table["image"].to_pylist():
        picture = Image.open(io.BytesIO(row["bytes"]))
        assert (picture.size, picture.mode) == ((8, 8), "L")


def forged_card(release: Path, old: str, new: str) -> None:
    """Change the datasheet and make all digests fit again."""
    card = release / "README.md"
    text = card.read_text()
    assert old in text
    card.write_text(text.replace(old, new))
    digest = hashlib.sha256(card.read_bytes()).hexdigest()
    rewritten(release, lambda certificate: certificate["files"].update({"README.md": digest}))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("  epsilon: 1.0\n", "  epsilon: 0.1\n"),
        ("  unit: one image\n", "  unit: one person\n"),
        ("(1, 0.0001)-differential privacy", "(0.1, 0.0001)-differential privacy"),
        ("num_examples: 40", "num_examples: 50"),
        ("---\n", "***\n"),
        ("differential_privacy:", "something_else:"),
    ],
)
def test_a_datasheet_that_says_other_than_the_certificate_fails(
    release: Path, verify: Verify, old: str, new: str
) -> None:
    forged_card(release, "# tiny", "# tidy")
    assert set(verify(release)[1].values()) == {"passed", "skipped"}
    forged_card(release, old, new)
    code, steps = verify(release)
    assert code == 1
    assert (steps["certified files"], steps["datasheet"]) == ("passed", "failed")


def test_the_datasheet_describes_the_release(finished: Place) -> None:
    card = (finished.release / "README.md").read_text()
    head = front_matter(card)
    assert head["pretty_name"] == "tiny"
    assert "license" not in head
    assert head["dataset_info"]["features"][1]["dtype"]["class_label"]["names"] == dict(
        zip("012", ["anna", "berta", "carla"], strict=True)
    )
    assert head["dataset_info"]["splits"][0]["num_examples"] == 40
    assert head["dataset_info"]["download_size"] == (finished.release / "synthetic.parquet").stat().st_size
    assert head["differential_privacy"]["epsilon"] == finished.run().config.privacy.epsilon
    assert "The smallest run that goes through every stage." in card
    assert "| 0 | anna | 14 |" in card


def test_the_sample_grid_opens(finished: Place) -> None:
    with Image.open(finished.release / "samples.png") as picture:
        picture.load()
        assert picture.width > 50 and picture.height > 50


def test_the_report_says_what_is_promised_and_loads_nothing_from_elsewhere(finished: Place) -> None:
    report = (finished.release / "report.html").read_text()
    assert "privimage verify" in report
    assert 'src="http' not in report and 'href="http' not in report


def test_the_report_shows_quality_from_public_and_charged_figures_and_the_query_with_all_its_votes(
    finished: Place,
) -> None:
    report = (finished.release / "report.html").read_text()
    query = json.loads(finished.payload("query", "query.json").read_text())
    selection = json.loads(finished.payload("select", "selection.json").read_text())["classes"]
    titles = re.findall(r"<h2>(.*?)</h2>\n<p class=\"tag\">(\w+)", report)
    assert titles == [
        ("Synthetic images", "public"),
        ("Semantic alignment", "charged"),
        ("Public categories that each class chose", "charged"),
        ("Figures", "charged"),
        ("Training curves", "public"),
        ("Time and cost", "public"),
        ("Privacy accounting", "charged"),
        ("Provenance", "public"),
        ("How to verify", "public"),
    ]
    assert "<dt>Semantic agreement</dt>" in report
    assert "<small>public · public-classifier features" in report.partition("Inception Score")[2]
    for row in selection:
        for category in row["categories"]:
            assert f"{category['name']}: {category['noisy_votes']:,.0f} noisy votes" in report
            assert f"✓ {category['name']}</text>" in report
    for row in query["noisy_histogram"]:
        assert f">{max(row):,.0f}</text>".replace("-", "\u2212") in report.replace(">-", ">\u2212")
    mechanisms = json.loads((finished.release / "certificate.json").read_text())["mechanisms"]
    paid = set(re.findall(r"paid by ([0-9a-f, ]+)", report))
    assert paid and {one for some in paid for one in some.strip().split(", ")} <= {
        mechanism["ledger_entry"]["id"] for mechanism in mechanisms
    }


def test_the_report_tells_no_private_stage_s_time(finished: Place) -> None:
    report = (finished.release / "report.html").read_text()
    table = report.partition("<h2>Time and cost</h2>")[2].partition("</section>")[0]
    times = dict(re.findall(r'<th scope="row">(\w+)<small>.*?</small></th><td class="number">(.*?)</td>', table))
    assert set(times) == {"public", "classifier", "query", "select", "pretrain", "finetune", "synthesize"}
    assert times.pop("query") == times.pop("finetune") == "not shown"
    assert all(re.fullmatch(r"[\d.]+ s", one) for one in times.values())
