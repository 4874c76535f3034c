"""Captions that tokenizers find difficult."""

import unicodedata

_WORDS = """
café naïve façade Ångström ĳssel ﬁnding ofﬁce Straße GROSSE STRASSE İstanbul ısı Ǆ ΟΔΥΣΣΕΥΣ ὀδυσσεύς ŒUVRE Æsir ẞ ſlow
Tiếng Việt phở đặc biệt Ṩ Ḋ ợ Zażółć gęślą jaźń příliš žluťoučký kůň ½ ² ③ Ⅷ ٣٤٥ १२३ ๑๒๓ 一二三 𝟙𝟚 ₁₂ ªº
"""
_WHOLE = """
it's we're they've I'm you'll he'd can't 'twas rock'n'roll
IT'S WE'RE THEY'VE I'M YOU'LL HE'D CAN'T
it’s a dog’s “life”, isn‘t it
's 't 're 've 'm 'll 'd ''s ' ' 'sss 'tree 'veil 'llama
James's dogs' x's's's
a photo of a cat, a dog & a cow
a cat!!! really??? yes... no… — – - ‐ ‑
!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!
............................................................................................
?!?!?!?!?! ¿¡ ‽ ⁇ ;;;; ,,,, :::: ((((nested)))) [[x:1.2]] {a|b} <lora:x:0.5>
(masterpiece:1.3), best quality, 8k, ((detailed)), [blurry], --ar 16:9 --v 5
#hashtag @mention $100 100% 5€ £20 ¥300 ^_^ ~tilde~ `code` \\backslash\\ /slash/ a*b=c+d
1234567890 12.5 1,000,000 3.14159 1e-5 0x1F 007 2nd 3rd 10x10 4K 1st-class mp3 h264 a1b2c3
&amp; &lt;b&gt; &quot;x&quot; &#39;s &nbsp; &copy; &amp;amp; &#x1F600; &eacute;
<b>bold</b> <br/> <!-- comment --> http://example.com/a?b=c&d=e#f user@example.org
ALL UPPER CASE, MiXeD CaSe, camelCaseWords, snake_case_words, kebab-case-words
<|endoftext|>
<|startoftext|>
a cat <|endoftext|> and a dog
a cat<|endoftext|>dog<|endoftext|><|endoftext|>
<|startoftext|>a cat<|endoftext|>
<|ENDOFTEXT|> <|EndOfText|> < |endoftext| > <|endoftext|
<|startoftext|><|startoftext|>twice
|endoftext| endoftext startoftext <||> <|| ||> <|pad|>
</w> a</w> the</w>cat </w></w>
#version: 0.2
## # ### #a a# #1
null None NaN undefined true -1 []
"; DROP TABLE captions; -- %s %d {0} {{}} $(id) `id` ${x}
صورة قطة حمراء
قِطَّةٌ صَغِيرَةٌ فِي ٱلْبَيْتِ
عکس یک گربهٔ قرمز با نیم‌فاصله می‌خواهم
تصویر بلی، ۱۲۳ اردو
एक लाल बिल्ली की तस्वीर
क्षत्रिय ज्ञान श्री हिन्दी क्‍ष क्‌ष
একটি লাল বিড়াল
ஒரு சிவப்பு பூனை
ഒരു ചുവന്ന പൂച്ച
ఒక ఎర్ర పిల్లి
ರಾಜ ಕನ್ನಡ
ਇੱਕ ਲਾਲ ਬਿੱਲੀ
රතු පූසෙක්
ภาพถ่ายของแมวสีแดง
น้ำใจ ที่นี่ กำลัง ๒๕๖๗
ຮູບແມວສີແດງ
ကြောင်နီ ဓာတ်ပုံ
រូបថតឆ្មាក្រហម
ཞི་མི་དམར་པོ།
一张红色猫的照片
紅い猫の写真、二匹。
東京タワー ﾊﾝｶｸ ｶﾅ ガギグ が
『鍵括弧』【隅付き】〜ー・々〆〇
빨간 고양이 사진
고양이 두 마리 한글 ㄱㄴㄷ ㅏㅑ
תמונה של חתול אדום
חָתוּל אָדֹם יָפֶה
\u202bחתול\u202c \u200fאדום\u200f \u200eabc\u200e
\u2067עברית\u2069 \u2066english\u2069 \u061cعربي
фотография красной кошки
ЁЛКА ёж Їжак й й Ѳита
φωτογραφία μιας κόκκινης γάτας
ΑΝΘΡΩΠΟΣ ΣΑΣ ΣΊΣΥΦΟΣ ς σ Σ
კატის ფოტო ᲙᲐᲢᲐ Ⴀ
կարմիր կատու և ԵՒ
ቀይ ድመት ፎቶ
ᏣᎳᎩ ꮳꮃꭹ
ᠮᠣᠩᠭᠣᠯ ᡥᡝᡵᡤᡝᠨ
ⲁⲃⲅ 𐌰𐌱𐌲 𐐀𐐨 𓀀𓁐 𒀀𒁀
𝓬𝓪𝓽 𝐂𝐀𝐓 𝕔𝕒𝕥 ⒞⒜⒯ ⓒⓐⓣ ｃａｔ ＣＡＴ
z̴̛̗a̷͓͠l̵̡͝g̶̰̈o̸̧͆
a\u0301\u0301\u0301 \u0301 e\u0323\u0302 ệ ệ
\u1100\u1161\u11a8 \u1100\u1161 각
Å Å Å ﬀ ﬁ ﷺ ㎏ ℃ Ω Ω K K
😀😃😄😁😆
👍👍🏻👍🏿 👋🏽
👨‍👩‍👧‍👦 👩🏽‍🚀 🏳️‍🌈 🧑🏿‍❤️‍💋‍🧑🏻
🇩🇪🇯🇵🇧🇷 🏴󠁧󠁢󠁥󠁮󠁧󠁿 1️⃣ #️⃣ ©️ ®️ ™
❤️ ❤ ☺︎ ☺️ ✈︎ ⛄ ♻️
a cat😺and a dog🐶.
🚀🚀🚀!!! 100🔥% 🙂'll 🙂's
\ue000\ue001 \uf8ff \U000f0000 \U0010fffd
\ufffd \ufffe \uffff \U0001ffff \ufdd0
\u200bzero\u200bwidth\u200b \u2060word\u2060joiner \ufeffbom
soft\u00adhyphen non\u00a0breaking thin\u2009space em\u2003space ideographic\u3000space
line\u2028separator paragraph\u2029separator next\u0085line ogham\u1680space mongolian\u180evowel
\x00 nul \x00\x00 a\x00b
\x01\x02\x03\x04\x05\x06\x07\x08 bell\x07back\x08
\x1b[31mred\x1b[0m \x7f del \x80\x9f c1
\x1c\x1d\x1e\x1f separators a\x1cb a\x1fb
\u2063 \u2064 \u206a \u206f \ufff9x\ufffa
𝄞 ♪♫ ♯♭ ♔♕ ☭ ☯ ⚛ ⌘ ⏎ ⠓⠑⠇⠇⠕
→←↑↓ ⇒ ∀x∈ℝ ∃y ∑∏∫ √2 ≠ ≤ ∞ ∂∇
┌─┐│└┘█▓▒░ ▲►▼◄
"""
_SPACES = (
    "",
    " ",
    "\t",
    "\n",
    "\r\n",
    "  leading and trailing  ",
    "tabs\tand\nnew\nlines\r\nand\x0bvertical\x0cform",
    "many          spaces",
    "\n\n\na\n\n\nb\n\n\n",
    "\u3000\u2003\u00a0",
    "a\u00a0\u00a0b \u2009 c",
    "trailing newline\n",
)
_LONG = (
    "a" * 10_000,
    "ab" * 5_000,
    "a " * 5_000,
    "é" * 10_000,
    "e\u0301" * 5_000,
    "猫" * 10_000,
    "👍🏽" * 5_000,
    "!" * 10_000,
    "1" * 10_000,
    "\u0301" * 1_000,
    " " * 10_000 + "x",
    "cat, " * 2_000,
    "a " * 74,
    "a " * 75,  # just fills 77 tokens
    "a " * 76,
    "a " * 75 + "<|endoftext|>",
    "supercalifragilisticexpialidocious " * 9,
)


def _captions() -> list[str]:
    lines = _WHOLE.strip("\n").split("\n")  # not by `splitlines`, which splits at other characters too
    words = _WORDS.split()
    base = [*lines, *words, " ".join(words), *_SPACES]
    forms = [unicodedata.normalize(form, text) for text in base for form in ("NFC", "NFD", "NFKD")]
    return list(dict.fromkeys([*base, *forms, *(text.upper() for text in lines), *_LONG]))


CAPTIONS = _captions()
