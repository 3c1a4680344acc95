import unittest

from krakenbot.errors import ConfigError
from krakenbot.kraken.signing import decode_secret, fingerprint, sign
from krakenbot.model import Secret

# The secret, nonce and first signature are those of Kraken's authentication guide.
SECRET = "kQH5HW/8p1uGOVjbgWA7FunAmGO8lsSUXNsu3eow76sz84Q18fWxnyRzBHCd3pd5nE9qa99HAZtuZuj6F1huXg=="
NONCE = "1616492376594"
PUBLISHED = (
    "/0/private/AddOrder",
    "nonce=1616492376594&ordertype=limit&pair=XBTUSD&price=37500&type=buy&volume=1.25",
    "4/dpxb3iT4tp/ZCVEwSnEsLxx0bqyhLpdfOpc6fn7OR8+UClSV5n9E6aSS8MPtnRfp32bAb0nmbRn6H8ndwLUQ==",
)
FURTHER = (
    (
        "/0/private/Balance",
        "nonce=1616492376594",
        "1nH4vwR+8FHiYh1QT649xXkGd3JR3x0DWkgv3u9Ed/Qqv6KPtgQpEU4m+Emb/VgpEji3j1XNwI+HCbfXxmrTOg==",
    ),
    (
        "/0/private/AddOrder",
        "nonce=1616492376594&ordertype=market&type=buy&pair=XBTUSD&volume=0.01&leverage=2%3A1"
        "&cl_ord_id=kb-20240509-00010&deadline=2021-04-01T00%3A18%3A45Z",
        "es+5ve6/hI88L91ZXWI0RYr6jOQfXD6SfpD3Lmty/2GwcAGS/FKn18LmfucNLs5Li+JmERN2A85m40KnsVfWjg==",
    ),
    (
        "/0/private/AddOrder",
        "nonce=1616492376594&ordertype=market&type=sell&pair=XBTUSD&volume=0.01&leverage=2"
        "&reduce_only=true&cl_ord_id=6d1b345e-2821-40e2-ad83-4ecb18a06876"
        "&deadline=2021-04-01T00%3A18%3A45Z",
        "Y3DoaPgf/Nzrqz4QFXx8kWYJz503IemdUte8iIAL3wRcDWD6kiPsvl52mk73StveMwLYhyasyNFiFz/2MLP7Rw==",
    ),
    (
        "/0/private/AddOrder",
        '{"nonce":"1616492376594","ordertype":"limit","pair":"XBTUSD","price":"37500",'
        '"type":"buy","volume":"1.25"}',
        "r/o+GpKxXjV/mls/r5CKLu5R+yzK5psqvQ4hXxMX1nzdxTBhV+ui82QGgPZMMitpFwCOAdPEZMmXgZxD2chJEg==",
    ),
)


class TestSignature(unittest.TestCase):
    def test_each_path_and_body_gives_its_known_signature(self) -> None:
        for path, body, signature in (PUBLISHED, *FURTHER):
            with self.subTest(body):
                self.assertEqual(signature, sign(Secret(SECRET), path, NONCE, body.encode()))

    def test_blanks_and_newlines_round_a_pasted_secret_do_not_matter(self) -> None:
        path, body, signature = PUBLISHED
        pasted = Secret(f"  {SECRET[:40]}\n{SECRET[40:]}\r\n")
        self.assertEqual(signature, sign(pasted, path, NONCE, body.encode()))


class TestSecret(unittest.TestCase):
    def test_a_secret_that_is_not_base64_is_a_configuration_error_and_not_shown(self) -> None:
        for text in ("not*base64*at*all", SECRET[:-1], SECRET + "=", "ключ", "", "   "):
            with self.subTest(text), self.assertRaises(ConfigError) as caught:
                decode_secret(Secret(text))
            if text.strip():
                self.assertNotIn(text.strip(), str(caught.exception))
                self.assertIsNone(caught.exception.__cause__)

    def test_a_fingerprint_names_the_key_and_shows_nothing_of_it(self) -> None:
        key = "kQH5HW/8p1uGOVjbgWA7FunAmGO8lsSUXNsu3eow76sz84Q18fWxnyRz"
        name = fingerprint(Secret(key))
        self.assertRegex(name, "^[0-9a-f]{12}$")
        self.assertEqual(name, fingerprint(Secret(key)))
        self.assertNotEqual(name, fingerprint(Secret(key + "x")))
        self.assertNotIn(name, key)
