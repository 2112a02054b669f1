"""Texts that tokenizers trip over: five hundred, under names, written for this purpose, the same on any machine."""

from __future__ import annotations

N_TEXTS = 500

# fmt: off
_SEEDS: dict[str, list[str]] = {
    "english": [
        "The capital of France is", "A quick look at the map shows three roads, not two.", "Hello, world!",
        "Don't panic: it's only 5 o'clock -- they'll wait, won't they?", "antidisestablishmentarianism",
        "READ THE MANUAL, then ask.", "camelCaseIdentifiersAndSnake_case_ones", "re-use, co-op; e.g. this / that",
        "“Curly quotes” and ‘single ones’ – with an en dash — and an em dash…", "naïve café, rôle, façade, Zoë",
        "e.g. and i.e. are not etc.", "(brackets [within {brackets}])", "A", "zzzzzz", "the the the the",
    ],
    "languages": [
        "Der Fuß des Bären ist größer, als man denkt.", "L'été dernier, j'ai mangé des huîtres à l'ombre.",
        "El niño pregunta: ¿dónde está mañana?", "O coração não tem pressa; amanhã haverá pão.",
        "Pójdź, kińże tę chmurność w głąb flaszy!", "Příliš žluťoučký kůň úpěl ďábelské ódy.",
        "Şişli'de ılık bir İstanbul akşamı, ığdır.", "Þórður ætlar að borða æðislegan fisk.",
        "Hyvää yötä, äiti; öylätti on pöydällä.", "Được rồi, chúng ta đi ăn phở ở Hà Nội nhé.",
        "Съешь ещё этих мягких булок, да выпей чаю.", "Їжак і ґанок: щастя поруч.", "Ђорђе чита Његоша.",
        "Ξεσκεπάζω την ψυχοφθόρα βδελυγμία.", "ὁ λόγος ἐν ἀρχῇ ἦν, ᾧ ᾶ ῥ", "Երեւանում գարուն է։",
        "ქართული ანბანი ლამაზია.", "ᏣᎳᎩ ᎦᏬᏂᎯᏍᏗ", "አማርኛ ቀላል አይደለም።", "ᚠᚢᚦᚨᚱᚲ ᛫ ᚱᚢᚾᛖᛋ", "ᠮᠣᠩᠭᠣᠯ ᠪᠢᠴᠢᠭ",
        "ⵜⵉⴼⵉⵏⴰⵖ ⴷ ⵜⴰⵎⴰⵣⵉⵖⵜ",
    ],
    "right to left": [
        "اللغة العربية جميلة، أليس كذلك؟", "مَرْحَبًا بِكُمْ فِي الْمَدِينَةِ", "۱۲۳۴ و ٥٦٧٨ أرقام",
        "این یک متن فارسی است که نیم‌فاصله دارد.", "یہ اردو کی ایک سطر ہے۔", "שלום עולם, מה שלומך?",
        "בְּרֵאשִׁית הַיּוֹם", "ܫܠܡܐ ܥܠܡܐ", "ދިވެހި ބަސް", "abc \u202bאבג\u202c def",
    ],
    "east asia": [
        "今天天气很好，我们去公园吧！", "繁體中文與簡體中文並不相同。",
        "吾輩はまだ何も書いていない。カタカナとひらがな。", "東京特許許可局、ｶﾞｷﾞｸﾞ、ＡＢＣ１２３",
        "한국어 문장은 띄어쓰기가 중요하다.", "ㄱㄴㄷ ㅏㅑㅓ 각", "１２３４５ 〇一二三",
        "「引用」『二重』【括弧】〜ー・", "𠮷野家で𩸽を食べる", "ㄅㄆㄇㄈ 注音", "你好\u3000世界", "ꆈꌠꁱꂷ",
    ],
    "south asia": [
        "नमस्ते, आप कैसे हैं? क्षत्रिय ज्ञान श्री।", "বাংলা ভাষা মিষ্টি ভাষা।", "தமிழ் மொழி இனிது, ௧௨௩",
        "తెలుగు లిపి గుండ్రంగా ఉంటుంది.", "ಕನ್ನಡ ನುಡಿ ಸೊಗಸು", "മലയാളം അക്ഷരങ്ങൾ", "ગુજરાતી લખાણ ૪૫૬", "ਪੰਜਾਬੀ ਬੋਲੀ",
        "සිංහල අකුරු ලස්සනයි", "ଓଡ଼ିଆ ଅକ୍ଷର", "१२३४५६७८९०", "क्‍ष and क्‌ष",
    ],
    "southeast asia": [
        "ภาษาไทยไม่มีช่องว่างระหว่างคำ", "น้ำ ที่ ผู้ใหญ่ ๑๒๓๔", "ພາສາລາວງາມ", "ភាសាខ្មែរពិរោះ ១២៣", "မြန်မာစာ ၁၂၃",
        "བོད་སྐད་ཡག་པོ་རེད།", "ꦗꦮ ꦲꦏ꧀ꦱꦫ", "ᜊᜌ᜔ᜊᜌᜒᜈ᜔",
    ],
    "numbers": [
        "0", "7 77 777 7777 77777 777777 7777777", "3.14159265358979", "1,234,567.89",
        "1e-10 6.022E+23 0x1F 0b1010 0o17", "2024-02-29T23:59:60Z", "+49 (0)30 123456-78", "192.168.0.1:8080", "007",
        "½ ⅓ ¼ ²³¹ ₀₁₂", "Ⅷ ⅸ ↁ", "①②③ ⑩ ⓿", "1st2nd3rd", "a1b22c333d4444", "𝟘𝟙𝟚 𝟎𝟏𝟐", "٣٫١٤", "100%",
        "$1.50 €2,00 £3 ¥400 ₹500 ₿6", "12:34:56.789", "9" * 50, "1 2 3 4 5 6 7 8 9 10", "12345678901234567890",
        "零壹贰叁", "१२34٥٦",
    ],
    "contractions": [
        "I'm he's she'd we'll they've you're can't", "I'M HE'S SHE'D WE'LL THEY'VE YOU'RE CAN'T",
        "I'm HE'S she'D We'lL tHeY'Ve yoU'rE", "'s", "'S's'S", "''s", "'''ll", "'tis 'twas 'Twas rock'n'roll",
        "I’m he’s don’t", "o'clock o'reilly d'accord l'eau", "x'sx 'sy 'd1 'm 'rem 'llama 'vex", "'re've'll'm'd's't",
        "'r 'v 'l 're", "5's 10'000 6'2\"", "dogs' cats'", "it'\u017f 'ſt 'K",
    ],
    "white space": [
        " ", "  ", "   ", "\n", "\n\n", "\r\n", "\r\n\r\n", "\t", "\t\t\t", " \n", "\n ", " \n \n ", "a b", "a  b",
        "a   b", " a", "  a", "a ", "a  ", "a\n", "a\n\n", "a\n\n\nb", "a \n b", "a\t b", "a \tb", "\ta",
        "a\r\nb\rc\nd", "  \n\n  x", "x  \n\n  ", "\n\n\n\n\n\n\n\n", " " * 17 + "deep",
        "tab\tseparated\tvalues\n1\t2\t3\n", "trailing   ", "\n  indented\n    more\n\tless", "\v\f", "a\vb\fc",
        "no\u00a0break\u00a0 space", "\u2003em\u2003space\u2002en", "thin\u2009space\u200ahair", "\u3000\u3000全角",
        "line\u2028sep\u2029par", "next\u0085line", "\u1680ogham\u1680", "a\u202fb\u205fc", "! \n!", ".\n\n.",
        "...\r\n\r\n", "? \n\n",
    ],
    "emoji": [
        "😀", "😀😃😄", "hi 😀 there", "👍🏽 👍🏿", "👩‍👩‍👧‍👦 family", "🧑🏽‍💻 types", "🏳️‍🌈 🏴‍☠️", "🇫🇷🇩🇪🇯🇵",
        "🇫 🇷", "❤️ ❤︎ ❤", "1️⃣2️⃣#️⃣*️⃣", "☕️☀️⚡", "🏴󠁧󠁢󠁳󠁣󠁴󠁿", "🫨🩷🪿", "a😀b", "😀1", "™️©️®️", "🤷‍♂️!", "🀄🃏",
        "¯\\_(ツ)_/¯ (╯°□°)╯︵ ┻━┻",
    ],
    "combining marks": [
        "e\u0301 e\u0301\u0323 \u0301", "Z\u0335\u0321a\u0336\u0322l\u0337g\u0334o\u0338",
        "a\u0300\u0301\u0302\u0303\u0304", "n\u0303 \u00f1", "\u1112\u1161\u11ab\u1100\u1173\u11af",
        "i\u0307 İ ı I\u0307", "q\u20dd x\u20e3", "\u0301\u0301\u0301", " \u0301a", "\u0903\u093e",
        "o\u0338= \u2260 =\u0338", "1\u0301 2\u0302", "fi\ufb01 ﬀ ﬃ ſt", "ǅ ǆ ʰ ˈ ʼ", "a\u200db\u200cc",
    ],
    "control characters": [
        "\x00", "a\x00b", "\x01\x02\x03", "\x1b[31mred\x1b[0m", "\x7f", "bell\x07back\x08space", "\x1c\x1d\x1e\x1f",
        "a\x1cb \x1f c", "\x80\x9f", "soft\u00adhyphen", "\u200b\u200c\u200d\u2060", "\ufeffBOM", "x\ufeffy",
        "\u202eoverride\u202c", "\u2066isolate\u2069", "\x00\x00\x00 \n\x00", "\u061c\u180e",
    ],
    "odd but valid": [
        "\ufffd", "a\ufffdb\ufffd\ufffd", "\ufffe\uffff", "\U0010ffff", "\ue000\uf8ff", "\U000f0000 \U00100000",
        "\u0378\u0379", "x\u0378y 1\u03792", "\U0001fffe", "\U000e0001\U000e0041", "\u2fe0", "\U00030000\U00031350",
        "\ud7ff\ue000", "Ã© Ã¼ â‚¬", "\\xff\\u0000\\ud800", "%F0%9F%98%80 &#128512; &amp;", "ĠHello Ċ ĉ",
        "\u0120\u010a\u0100", "▁under▁score", "<0x0A><unk>",
    ],
    "chat markup": [
        "<|im_start|>", "<|im_end|>", "<|im_sep|>", "<|endoftext|>", "<|im_start|>user<|im_sep|>Hello<|im_end|>",
        "<|im_start|>system<|im_sep|>Be brief.<|im_end|>"
        "<|im_start|>user<|im_sep|>Why?<|im_end|><|im_start|>assistant<|im_sep|>",
        "<|im_start|><|im_start|><|im_end|><|im_end|>", "<|fim_prefix|>def f():<|fim_suffix|>return x<|fim_middle|>",
        "<|im_start|", "|im_start|>", "<|im_start>", "< |im_start|>", "<|im_START|>", "<|IM_START|>", "<<|im_end|>>",
        "<|im_<|im_end|>end|>", "<|dummy_0|><|dummy_85|>", "<|dummy_999|>", "<|endofprompt|>x<|endoftext|>",
        "a<|im_end|>b", "1<|im_sep|>2", "'<|im_end|>'s", "don<|im_sep|>'t", "[INST] <<SYS>> </s> <s>",
        "[PAD100256] <unk> <pad>", "<|user|><|assistant|><|end|>", "é<|im_end|>é", "你好<|im_end|>再见",
        "x<|endoftext|>😀<|endoftext|>", "<|im_end|>.",
    ],
    "chat markup and white space": [
        "<|im_start|> user <|im_sep|> Hello <|im_end|>", "<|im_start|>user<|im_sep|>\nHello\n<|im_end|>\n",
        "a <|im_end|>", "<|im_end|> a", "<|im_end|>\n", " <|im_start|>", "<|im_start|>\n\n<|im_end|>",
        "a\t<|im_sep|>\tb", "x  <|endoftext|>  y", "<|im_start|>system<|im_sep|>You are\r\n<|im_end|>\r\n",
        "<|im_end|>\u00a0<|im_end|>", "line\n\n<|im_start|>assistant<|im_sep|>",
    ],
    "code": [
        "def gcd(a, b):\n    while b:\n        a, b = b, a % b\n    return a\n",
        "class Point:\n\t__slots__ = ('x', 'y')\n\n\tdef __init__(self, x=0, y=0):\n\t\tself.x, self.y = x, y\n",
        "print(f\"{name!r:>10} = {value:.3e}\")  # aligned",
        "#include <stdio.h>\nint main(void) { printf(\"%d\\n\", 1 << 3); return 0; }\n",
        "for (size_t i = 0; i < n; ++i) { y[i] += a * x[i]; }",
        "template<typename T> auto f(T&& t) -> decltype(t) { return std::forward<T>(t); }",
        "fn main() {\n    let v: Vec<_> = (1..=3).map(|x| x * x).collect();\n    println!(\"{v:?}\");\n}\n",
        "const f = async ({ a, ...rest }) => await g?.(a ?? `x${rest}`);",
        "if err != nil {\n\treturn fmt.Errorf(\"open %q: %w\", path, err)\n}",
        "SELECT a.id, COUNT(*) AS n FROM t AS a WHERE a.x <> 'it''s' GROUP BY 1 HAVING n >= 10;",
        "<div class=\"row\" id='r1'>&nbsp;<br/><!-- note --></div>",
        "body > .item:nth-child(2n+1) { margin: -1px auto 0 !important; }",
        "awk -F: '{ print $1 }' /etc/passwd | sort -u > out.txt 2>&1 || exit 1", "(defun sq (x) (* x x)) ; lisp",
        "main = mapM_ print $ takeWhile (< 100) [x ^ 2 | x <- [1 ..]]", "\tmov\teax, [rbp-0x8]\n\tjmp\t.L2\n",
        "all: $(OBJ)\n\t@echo $@ $^\n\n.PHONY: all\n", "key: value\nlist:\n  - one\n  - 'two'\n  - {a: 1}\n",
        "[package]\nname = \"x\"\nversion = \"0.1\"\n", "^(?:[a-z0-9._%+-]+)@(?:[a-z0-9-]+\\.)+[a-z]{2,}$",
        "diff --git a/x b/x\n@@ -1,2 +1,2 @@\n-old\n+new\n", "```python\nx = 1\n```\n",
        "# Title\n\n* item **bold** _it_ ~~no~~ `code` [link](url)\n\n> quote\n", "| a | b |\n|---|:-:|\n| 1 | 2 |\n",
        "\\begin{align} x &= y \\\\ &\\neq z \\end{align}",
        "x = y if z else ~w & 0xFF | m ^ n << 2 >> 1 // 3 ** 4 != 5 <= 6 == 7", "/* block */ // line\n/** doc */",
        "#!/bin/sh\nset -eu\n", "try { } catch (e) { } finally { }", "λx.λy.x y → ∀α.α", "a->b.c::d[e]{f}(g)",
        "!!!???...,,,;;;:::", "{{'<|' + role + '|>'}}", "__init__ __x _y z__", "i++ + ++j -- - k",
    ],
    "addresses": [
        "https://example.org/a/b?c=d&e=f%20g#h", "http://user:pass@host.example:8080/~me/",
        "mailto:someone+tag@mail.example.net", "ftp://files.example/pub/x.tar.gz", "C:\\Program Files\\App\\x.exe",
        "/usr/lib/python3/site-packages/__init__.py", "//cdn.example/x.min.js", "git@host.example:org/repo.git",
        "doi:10.1000/xyz123", "urn:uuid:123e4567-e89b-12d3-a456-426614174000", "www.bücher.example",
        "xn--bcher-kva.example", "file:///C:/x%20y",
    ],
    "json": [
        "{\"a\": 1, \"b\": [true, false, null], \"c\": {\"d\": \"e\\n\"}}", "{\"a\":1,\"b\":[1,2,3]}", "[[],[[]],{}]",
        "{\n  \"name\": \"x\",\n  \"n\": -1.5e3\n}\n", "\"\\u00e9\\ud83d\\ude00\"", "[1, 2,\n 3]\n",
        "{\"text\": \"<|im_end|>\"}",
    ],
    "maths": [
        "∀ε>0 ∃δ>0: |x−a|<δ ⇒ |f(x)−f(a)|<ε", "∫₀^∞ e^{−x²} dx = √π⁄2", "a² + b² = c²; x₁ ≤ x₂ ≠ x₃",
        "∑_{i=1}^{n} i = n(n+1)/2", "$\\frac{\\partial f}{\\partial x}$", "𝑓: ℝ → ℂ, 𝔸 ⊂ 𝕂, ℵ₀",
        "A ∪ B ∩ C \\ ∅ ⊆ 𝒫(Ω)", "±1 × 2 ÷ 3 ∓ 4 · 5", "∇·E = ρ/ε₀", "f∘g ≅ h ⊗ k ⊕ l",
    ],
    "runs": [
        "a" * 300, "A" * 100, "é" * 64, " " * 200, "\n" * 100, "\t" * 50, "=" * 120, "-" * 80, "." * 99, "0" * 100,
        "ab" * 100, "😀" * 40, "字" * 60, "\u0301" * 40, "'" * 33, "\r\n" * 30, " \n" * 30, "a " * 60, "\u00a0" * 20,
        "<|im_end|>" * 12, "ha" * 40, "!?" * 30, "\x00" * 20, "の" * 50, "_" * 64, "ก" * 40, "\u200b" * 30,
        "#" * 7 + " x",
    ],
}
# fmt: on

_JOINTS = ("", " ", "\n", ", ", "\n\n", "  ", "\t", "<|im_end|>")


def texts() -> dict[str, str]:
    """N_TEXTS different texts by name: the groups above, then joins of members far apart."""
    result = {f"{group} {n}": text for group, members in _SEEDS.items() for n, text in enumerate(members, 1)}
    names = list(result)
    step = 97  # far enough to cross groups, and prime to their number, so that every member has its turn
    for n in range(N_TEXTS - len(names)):
        left, right = names[n * step % len(names)], names[(n * step + len(names) // 2) % len(names)]
        result[f"{left} | {right}"] = result[left] + _JOINTS[n % len(_JOINTS)] + result[right]
    return result
