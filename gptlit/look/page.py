"""The HTML page of `gptlit look`: its frame, with the styles, the script and the values in it."""

import importlib.resources
import json
from html import escape

from gptlit.charts.themes import Theme
from gptlit.look.content import Json
from gptlit.reports.page import document

ATTENTION = """\
<section id="attention" aria-labelledby="attention-title">
<h2 id="attention-title">Attention</h2>
<div class="controls">
<label>layer <select id="layer"></select></label>
<label>head <select id="head"></select></label>
</div>
<div id="maps">
<div>
<canvas id="map" tabindex="0" role="img" aria-label="Attention map: a row for each token, with the \
weights of those that it reads; arrow keys move over it" aria-describedby="reading"></canvas>
<output id="reading" class="soft"></output>
</div>
<div id="overview" role="group" aria-label="All heads: a row for each layer"></div>
</div>
<p class="soft">A row shows how much a token reads from itself and from earlier ones; \
the strength of blue is the square root of the weight.</p>
</section>
"""
BODY = """\
<header>
<h1>{title}</h1>
<p class="soft">{about}</p>
</header>
<noscript><p>This page needs JavaScript, which it has in itself; it loads nothing.</p></noscript>
<main>
<section id="text" aria-labelledby="text-title">
<h2 id="text-title">Text</h2>
<div class="controls" role="radiogroup" aria-label="Colour of the tokens">
<label><input type="radio" name="colour" value="surprise" checked>surprise</label>
<label><input type="radio" name="colour" value="entropy">entropy</label>
{by_attention}<span class="legend soft">0<i></i><span id="most"></span></span>
</div>
<div id="strip" role="listbox" aria-label="Tokens of the text"></div>
<p class="soft">Hover over a token, or move with the arrow keys, for its alternatives. Surprise is \
-log<sub>2</sub> of a token's probability; entropy is the surprise that its prediction \
expects{reads}.</p>
</section>
<aside>
<section id="details" aria-labelledby="chosen">
<h2 id="chosen"></h2>
<dl id="facts"></dl>
<p id="unpredicted" class="soft">Nothing precedes it, so the model does not predict it.</p>
<div><ul id="best" class="bars" aria-label="Likeliest tokens"></ul></div>
<div id="neighbours">
<h3>Nearest in the embedding (cosine)</h3>
<ul id="near" class="bars"></ul>
</div>
</section>
</aside>
{attention}<section id="lens" aria-labelledby="lens-title">
<h2 id="lens-title">Logit lens</h2>
<p class="soft">The likeliest next token by layer, if the last norm and the head were applied to \
its output. Underlined: the token that follows. The strength \
of the colour is the square root of the probability.</p>
<output id="lens-about"></output>
<div id="grid"></div>
</section>
</main>
<script type="application/json" id="data">{data}</script>
<script>
{script}</script>"""


def html(title: str, about: str, values: Json, theme: Theme = "auto") -> str:
    """Return a page that needs no other file.

    Args:
        title: Title, as text.
        about: Description of the model, as text.
        values: Values of `content.content`.
        theme: light, dark, or auto for the one that the viewer prefers.
    """
    files = importlib.resources.files("gptlit.look")
    style, script = ((files / f"look.{each}").read_text("utf-8") for each in ("css", "js"))
    by = '<label><input type="radio" name="colour" value="attention">attention</label>\n'
    body = BODY.format(
        title=escape(title),
        about=escape(about),
        attention=ATTENTION if values["layers"] else "",
        by_attention=by if values["layers"] else "",
        reads="; attention is what the chosen token reads" if values["layers"] else "",
        # in JSON, < stands only in strings, where it would begin a tag
        data=json.dumps(values, separators=(",", ":")).replace("<", "\\u003c"),
        script=script,
    )
    return document(title, style, body, theme)
