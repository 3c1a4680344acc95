"""Whatever comes from outside meets a planned error or becomes exact values; nothing else.

    python -m unittest tests.fuzz

Needs hypothesis, which is why plain `python3 -m unittest` does not find it. The same examples are
tried each time, as many as fit into about half a minute.
"""

import contextlib
import json
import time
import unittest
from collections.abc import Iterable, Mapping
from copy import copy
from decimal import Decimal
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from krakenbot import config, config_reader
from krakenbot.backtest.columns import BadDataError
from krakenbot.backtest.files import read
from krakenbot.candles import fill
from krakenbot.commands import json_values
from krakenbot.commands.history import ROWS
from krakenbot.commands.status import read_status
from krakenbot.credentials import load_credentials
from krakenbot.errors import ConfigError, LaterError, RefusedError, StopError, UnansweredError
from krakenbot.journal import Journal
from krakenbot.journal_file import open_journal, open_read_only
from krakenbot.kraken.client import parse_json, result_of
from krakenbot.kraken.shape import parse_candles
from krakenbot.kraken.spot import Spot
from krakenbot.model import Side
from krakenbot.pairs import decimal, parse_rules, plain
from krakenbot.records import Booked, Outcome
from krakenbot.simulated.feed import Feed
from tests.folders import own_folder
from tests.logs import forget_secrets, silence
from tests.ports.test_journal import ROW, SUMMARY, execution, intent
from tests.ports.test_spot import ANSWERS, CALLS, OPEN_ORDER, ORDER, TXID, Kraken, paths, spot

T0 = 1_790_000_040
PLANNED = (UnansweredError, RefusedError, LaterError, StopError)

settings.register_profile(
    "bounded",
    deadline=5000,
    max_examples=150,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)
settings.load_profile("bounded")

META = """first_direction charges_read pnl_at_resume halted unfilled_from warnings started pid
    ended exit_code seen seen_wall next_decision pair_decimals exchange_position created
    interval alerts_since adopted"""

CHECK_MAX_S = 0.5  # Of the processor. Written out, 1e200000 takes longer, 1e999999999 for ever.

# Numbers and texts at which parsers stumble, as they stand in JSON.
NUMBERS = "1e200000 -1e-999999999 1e30 1E31 1e400 0.1 -0 -1 0 NaN Infinity -Infinity true null"
TEXTS = r"""[] {} [[]] "" "nan" "inf" "1e999999999" "1_000" "\u0661" "0x1" "-0.00" "\ud800"
    "\u0000" "XXBTZUSD" "buy" "closed" """
LONG = ("9" * 30, "9" * 4400, '"' + "9" * 4400 + '"', '" 1"', '{"": null}')
AWKWARD = (*NUMBERS.split(), *TEXTS.split(), *LONG)
ODD = "\x00odd\x00"  # Stands where an awkward piece of JSON is put in.

AMOUNT = st.decimals(-10, 10**9, allow_nan=False, allow_infinity=False, places=8).map(
    lambda number: f"{number:f}"
)
ANSWERED: dict[str, Any] = ANSWERS | {"OpenOrders": {"open": {TXID: OPEN_ORDER}}}
# A good answer of each method; the answers tried are these with one place or more made odd.
GOOD: dict[str, Any] = json.loads(json.dumps(ANSWERED, default=float))
# What of the port reads each answer.
READERS = {name: read for name, read in CALLS.items() if name not in ("AddOrder", "QueryOrders")}


def places(value: Any) -> list[tuple[Any, ...]]:
    """Return the way to every place of a JSON value, the whole first."""
    return [(), *paths(value)]


def replaced(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    if not path:
        return new
    first, *rest = path
    changed = copy(value)
    changed[first] = replaced(value[first], tuple(rest), new)
    return changed


def spoiled(result: Any, pieces: Iterable[str]) -> bytes:
    """Return an envelope with the pieces of JSON where the result is odd."""
    text = json.dumps({"error": [], "result": result})
    for piece in pieces:
        text = text.replace(json.dumps(ODD), piece, 1)
    return text.replace(json.dumps(ODD), "0").encode("utf-8", "surrogatepass")


@st.composite
def answers(draw: st.DrawFn, method: str) -> bytes:
    """Return an envelope with a good result in which one to three places are odd."""
    result, pieces = GOOD[method], []
    for _ in range(draw(st.integers(1, 3))):
        result = replaced(result, draw(st.sampled_from(places(result))), ODD)
        pieces.append(draw(st.one_of(st.sampled_from(AWKWARD), AMOUNT.map(json.dumps), JUNK)))
    return spoiled(result, pieces)


TEXT = st.text(max_size=8)
LEAVES = st.one_of(st.none(), st.booleans(), st.integers(), TEXT, st.floats(), AMOUNT)
JUNK = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
).map(json.dumps)
CATEGORIES = ("EAPI:", "EOrder:", "EService:", "EGeneral:", "EQuery:", "W", "E", "")
ERRORS = st.one_of(
    st.text(max_size=30),
    st.sampled_from(CATEGORIES),
    st.text(max_size=9).map("EOrder:".__add__),
    st.text(max_size=9).map("EService:".__add__),
)
TIMES = st.integers(0, 40).map(lambda n: str(T0 + 60 * n)) | st.text(max_size=5)
FIELDS = st.sampled_from(("", "nan", "1e9", "-1", "0", "5", "5.0", "1e999999999", "9" * 400))
CANDLES = (
    st.lists(st.tuples(TIMES, st.lists(AMOUNT | FIELDS, min_size=3, max_size=6)), max_size=12)
    .map(lambda rows: "\n".join(",".join([time, *rest]) for time, rest in rows))
    .map(lambda text: text.encode("utf-8", "replace"))
)
NAMED = config_reader.load(None, {"HOME": "/"}, Path("/nonexistent")).sources
SETTINGS = st.dictionaries(st.sampled_from([*NAMED, "risk", "size ", "a.b"]), JUNK).map(
    lambda pairs: "\n".join(f"{key} = {value}" for key, value in pairs.items()).encode()
)
VARIABLES = ["KRAKENBOT_" + key.replace(".", "_").upper() for key in NAMED]
PLACES = ("HOME", "STATE_DIRECTORY", "XDG_STATE_HOME", "KRAKENBOT_CONFIG")
NAMES = st.sampled_from((*VARIABLES, *PLACES)) | st.text(
    st.characters(exclude_characters="=\0"), min_size=1, max_size=9
).map("KRAKENBOT_".__add__)
ADDRESSES = "https://[::1 http://127.0.0.1:99999 https://a@b 1e999999999 true ~ ~root/x /dev/null"
NO_NUL = st.characters(exclude_characters="\0")
VALUES = st.text(NO_NUL, max_size=20) | AMOUNT | st.sampled_from((*ADDRESSES.split(), "9" * 5000))
KEYS = "KRAKEN_API_KEY KRAKEN_API_SECRET KRAKEN_API_KEY_FILE KRAKEN_API_SECRET_FILE"
SECRETS = st.text(NO_NUL, max_size=12) | st.sampled_from(("/", "/dev/null", "/dev/full", "."))


class FuzzTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls) -> None:
        silence(cls)
        cls.folder = own_folder(cls)

    @classmethod
    def tearDownClass(cls) -> None:
        forget_secrets()

    def assert_exact(self, value: object) -> None:
        """Fail where a float hides in what was parsed, or a number that is none."""
        self.assertNotIsInstance(value, float)
        if isinstance(value, Decimal):
            self.assertTrue(value.is_finite(), value)
            self.assertLessEqual(abs(value.adjusted()), 70)
        elif isinstance(value, dict):
            for key, inner in value.items():
                self.assertIsInstance(key, str)
                self.assert_exact(inner)
        elif isinstance(value, list | tuple):
            for inner in value:
                self.assert_exact(inner)


class TestAnswers(FuzzTest):
    def check(self, method: str, answer: bytes) -> None:
        kraken = Kraken(**{method: answer})
        began = time.process_time()
        try:
            value = READERS[method](spot(kraken))
        except PLANNED:
            value = None
        self.assertLess(time.process_time() - began, CHECK_MAX_S)
        self.assert_exact(value)
        self.assertNotIn("AddOrder", dict(kraken.asked))

    def test_an_odd_answer_of_any_method_is_exact_or_refused(self) -> None:
        for method in READERS:
            with self.subTest(method):
                given(st.just(method), answers(method))(self.check)()

    def test_a_number_of_any_size_in_any_place_is_exact_or_refused(self) -> None:
        for method in READERS:
            for path in places(GOOD[method]):
                for piece in AWKWARD:
                    with self.subTest(method, path=path, piece=piece[:20]):
                        odd = replaced(GOOD[method], path, ODD)
                        self.check(method, spoiled(odd, [piece]))

    @given(st.binary(max_size=200) | JUNK.map(str.encode), st.sampled_from((200, 403, 502, 520)))
    @example(b"[" * 100_000, 200)
    @example(b'{"error":[],"result":' + b"9" * 100_000 + b"}", 200)
    def test_bytes_that_are_no_envelope_are_no_answer(self, body: bytes, status: int) -> None:
        with contextlib.suppress(PLANNED):
            self.assert_exact(result_of("Balance", status, body))

    @given(st.lists(ERRORS, min_size=1, max_size=4))
    def test_a_list_of_errors_hides_a_result_unless_all_are_warnings(
        self, errors: list[str]
    ) -> None:
        body = json.dumps({"error": errors, "result": {}}).encode()
        for method, ask in (("Balance", Spot.balances), ("OpenPositions", Spot.position)):
            kraken = Kraken(**{method: body})
            try:
                ask(spot(kraken))
                self.assertTrue(all(error.strip().startswith("W") for error in errors), errors)
            except PLANNED:
                pass
            self.assertNotIn("AddOrder", dict(kraken.asked))

    @given(JUNK | answers("QueryOrders").map(bytes.decode), st.sampled_from((200, 500)))
    def test_an_order_goes_out_once_and_only_an_answer_with_one_id_is_a_yes(
        self, text: str, status: int
    ) -> None:
        kraken = Kraken(AddOrder=b'{"error":[],"result":' + text.encode() + b"}")
        with self.assertRaises((UnansweredError, StopError)):
            spot(kraken).place(ORDER, T0 + 15)
        self.assertEqual([method for method, _ in kraken.asked].count("AddOrder"), 1)


class TestValues(FuzzTest):
    @given(st.one_of(LEAVES, st.text("0123456789.eE+-_ nNaAiIfF", max_size=12), st.decimals()))
    def test_a_number_from_outside_is_exact_or_refused(self, value: object) -> None:
        try:
            number = decimal(value)
        except ValueError:
            return
        self.assert_exact(number)
        text = plain(number)
        self.assertEqual(Decimal(text), number)
        self.assertRegex(text, r"^-?[0-9]+(\.[0-9]+)?$")
        self.assertLess(len(text), 100)

    @given(JUNK)
    def test_rules_and_rows_of_any_form_are_exact_or_refused(self, text: str) -> None:
        try:
            value = parse_json(text.encode())
        except ValueError:
            return
        for rows in (value, {"X": value, "last": 1}):
            with contextlib.suppress(UnansweredError):
                self.assert_exact(parse_candles(rows, 60))
        with contextlib.suppress(ValueError):
            self.assert_exact(parse_rules("X", value))

    @given(
        st.lists(st.tuples(st.integers(0, 400), *[st.integers(1, 9)] * 4), min_size=1, max_size=30)
    )
    def test_rows_in_any_order_become_candles_without_holes(self, rows: list[Any]) -> None:
        result = {"X": [[60 * row[0], *map(str, row[1:]), "0", "0", 1] for row in rows], "last": 0}
        try:
            candles = fill(parse_candles(result, 60), 60)
        except UnansweredError:
            return
        times = [candle.time for candle in candles]
        self.assertEqual(times, list(range(times[0], times[-1] + 1, 60)))
        self.assert_exact(candles)


class TestFiles(FuzzTest):
    @given(
        st.binary(max_size=300) | CANDLES,
        st.sampled_from(("XBTUSD_1.csv", "XBTUSD_1.csv.gz", "XBTUSD_1.json")),
    )
    def test_a_file_of_candles_is_read_or_refused(self, content: bytes, name: str) -> None:
        path = self.folder / name
        path.write_bytes(content)
        with contextlib.suppress(BadDataError):
            for columns in read([path], 60, []):
                self.assertTrue(columns.closes)
        if not name.endswith(".json"):
            with contextlib.suppress(ValueError):
                Feed(f"csv:{path}", T0)

    @given(
        st.one_of(
            st.binary(max_size=200),
            st.text(max_size=200).map(lambda text: text.encode("utf-8", "replace")),
            SETTINGS,
            st.sampled_from(AWKWARD).map(lambda piece: f"size = {piece}".encode()),
        )
    )
    def test_a_configuration_file_is_read_or_refused(self, content: bytes) -> None:
        (self.folder / "c.toml").write_bytes(content)
        self.check_config("c.toml", {"HOME": "/"})

    @given(st.dictionaries(NAMES, VALUES, max_size=5))
    def test_an_environment_is_read_or_refused(self, environ: dict[str, str]) -> None:
        self.check_config(None, environ)

    def check_config(self, path: str | None, environ: Mapping[str, str]) -> None:
        try:
            found = config_reader.load(path, environ, self.folder)
        except ConfigError as error:
            self.assertTrue(str(error))
            return
        for money in (found.size, found.paper.balance, found.risk, found.exchange.fee_percent):
            self.assert_exact(money)
        url = found.exchange.url
        self.assertTrue(url.startswith("https://") or config.is_loopback(url))

    @given(st.dictionaries(st.sampled_from([*KEYS.split(), "CREDENTIALS_DIRECTORY"]), SECRETS))
    def test_a_key_is_read_or_refused_and_never_shown(self, environ: dict[str, str]) -> None:
        with contextlib.suppress(ConfigError):
            found = load_credentials(config.Config(), environ=environ)
            self.assertFalse(found and found.key.reveal() * 2 in repr(found) * 2)


class TestJournals(FuzzTest):
    """Bytes of a journal changed by a disk: read as planned, and never changed by looking."""

    @classmethod
    def setUpClass(cls) -> None:
        super().setUpClass()
        path = cls.folder / "sound.db"
        with contextlib.closing(open_journal(path)) as journal:
            _fill(journal)
        cls.sound = path.read_bytes()

    @given(st.binary(max_size=600) | st.binary(max_size=50).map(b"SQLite format 3\0".__add__))
    def test_bytes_that_are_no_journal_are_refused_unchanged(self, content: bytes) -> None:
        self.check(content)

    @given(st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=8))
    def test_a_journal_with_changed_bytes_is_read_or_refused_unchanged(
        self, changes: list[tuple[int, int]]
    ) -> None:
        content = bytearray(self.sound)
        for at, byte in changes:
            content[at % len(content)] = byte
        self.check(bytes(content))

    @given(st.integers(0, 10**6), st.integers(1, 5000))
    def test_a_journal_that_lost_a_part_is_read_or_refused_unchanged(
        self, at: int, length: int
    ) -> None:
        at %= len(self.sound)
        self.check(self.sound[:at])
        self.check(self.sound[:at] + bytes(length) + self.sound[at + length :])

    @given(
        st.sampled_from(META.split()),
        st.text(max_size=9) | AMOUNT | st.sampled_from(("nan", "inf", "1e400")),
    )
    def test_odd_values_in_sound_tables_are_read_or_refused_unchanged(
        self, key: str, value: str
    ) -> None:
        path = self.folder / "odd.db"
        path.write_bytes(self.sound)
        with contextlib.closing(open_journal(path)) as journal:
            journal.put(**{key: value.encode("utf-8", "replace").decode()})
        self.check(path.read_bytes())

    def check(self, content: bytes) -> None:
        path = self.folder / "fuzzed.db"
        for name in ("fuzzed.db-wal", "fuzzed.db-shm"):
            (self.folder / name).unlink(missing_ok=True)
        path.write_bytes(content)
        for use in (_look, _work):
            try:
                use(path)
            except (ConfigError, StopError) as error:
                if isinstance(error, StopError) and "damaged" in str(error) and content:
                    self.assertEqual(path.read_bytes(), content, "changed by looking at it")
                return


def _fill(journal: Journal) -> None:
    for number, side in enumerate((Side.BUY, Side.SELL, Side.SELL)):
        traded = intent(T0 + 60 * number, side=side)
        journal.write(traded)
        found = execution(traded, "0.01", "500", "4")
        journal.conclude(traded, Outcome.CLOSED, T0 + 1, found)
    journal.book([Booked("open T1", T0, "opening", Decimal("0.1"))])
    journal.decide(ROW, SUMMARY)


def _look(path: Path) -> None:
    with contextlib.closing(open_read_only(path)) as journal:
        json.dumps(json_values(read_status(journal)))
        for rows in ROWS.values():
            list(rows(journal, 0))


def _work(path: Path) -> None:
    with contextlib.closing(open_journal(path)) as journal:
        journal.account()
        journal.open_intents()
        journal.intents()
        journal.consecutive_unfilled()
        journal.is_done(60, T0)
        journal.put(flatten="x")
