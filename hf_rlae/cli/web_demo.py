"""The page of `hf-rlae demo --web`: a prompt, weights by hand or by a policy, and who wrote which token."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from functools import cache
from typing import Any

from hf_rlae.cli.arguments import check_packages
from hf_rlae.ensemble import EnsembleForCausalLM
from hf_rlae.errors import ConfigError, HfRlaeError
from hf_rlae.members import Member
from hf_rlae.policies import StaticPolicy
from hf_rlae.reports import TracedToken, colour_of, plot_token_weights, short_names, trace_tokens
from hf_rlae.serving import LOOPBACK
from hf_rlae.zoo import MEMBER_SETS, load_demo_members, load_demo_policy

LEARNED, BY_HAND, EQUAL, CERTAIN = "a trained policy", "by hand", "equal weights", "the most certain member"
CHOICES = (LEARNED, BY_HAND, EQUAL, CERTAIN)
"""Who chooses the weights."""

MAX_PROMPT, MAX_TOKENS = 200, 60

_ABOUT = """
Three tiny language models write one text together. Each is right on one of `+`, `-` and `*`, and confidently wrong on
the others. At every token their distributions are mixed with the weights of the span. The colour of a token is that of
the member that contributed most to its probability; point at a token for the numbers.

With **three tokenizers** a token of one model is often no token of another one. Every model then keeps the ways in
which its own tokens can spell the text so far, its *readings*, with their probabilities, and says how likely each next
token is over all of them.
"""


def build_demo() -> Any:
    """The page, a `gradio.Blocks`; `launch()` serves it.

    Raises:
        ConfigError: gradio is not installed.
    """
    check_packages("the page of the demo", ("gradio",), "demo")
    import gradio

    with gradio.Blocks(title="hf_rlae", analytics_enabled=False) as page:
        gradio.Markdown("# Several models, one text\n" + _ABOUT)
        with gradio.Row():
            with gradio.Column(scale=1):
                prompt = gradio.Textbox("7+5*3=", label="prompt", max_length=MAX_PROMPT)
                kind = gradio.Radio([*MEMBER_SETS], value="different", label="tokenizers of the members")
                choice = gradio.Radio([*CHOICES], value=LEARNED, label="weights")
                sliders = [
                    gradio.Slider(0, 1, 0.5, step=0.05, label=f"by hand: {operator}")
                    for operator in ("addition", "subtraction", "multiplication")
                ]
                span = gradio.Slider(1, 8, 2, step=1, label="span length, tokens (a trained policy has its own)")
                button = gradio.Button("write", variant="primary")
            with gradio.Column(scale=2):
                text = gradio.HTML(label="text")
                picture = gradio.Plot(show_label=False)
                table = gradio.Dataframe(label="tokens", interactive=False)
        inputs, outputs = [prompt, kind, choice, *sliders, span], [text, picture, table]
        button.click(write, inputs, outputs, api_name="write")
        page.load(write, inputs, outputs, api_name=False)
    return page


def serve(port: int) -> None:
    """Serves the page on this machine until Ctrl-C.

    Args:
        port (`int`): 0 for a free one.

    Raises:
        ConfigError: the port is in use, or gradio is not installed.
    """
    page = build_demo()
    try:
        _, url, _ = page.launch(
            server_name=LOOPBACK[0], server_port=port or None, share=False, quiet=True, prevent_thread_lock=True
        )
    except OSError as error:
        raise ConfigError(f"--port {port} is in use; give another one, or 0 for a free one") from error
    print(f"The page is at {url} (Ctrl-C ends it)", flush=True)
    page.block_thread()


def write(
    prompt: str, kind: str, choice: str, first: float, second: float, third: float, span: float
) -> tuple[Any, ...]:
    """Writes one text.

    Args:
        prompt (`str`): up to `MAX_PROMPT` characters.
        kind (`str`): a set of members, of `MEMBER_SETS`.
        choice (`str`): of `CHOICES`.
        first, second, third (`float`): weights by hand.
        span (`float`): tokens per span; a trained policy has its own.

    Returns:
        `tuple`: HTML, a figure, and a table as `{"headers": ..., "data": ...}`.
    """
    try:
        names, tokens = _written(prompt[:MAX_PROMPT], kind, choice, (first, second, third), int(span))
    except HfRlaeError as error:
        return f"<p>{html.escape(str(error))}</p>", None, None
    rows = [[token.text, token.span, *(f"{weight:.2f}" for weight in token.weights)] for token in tokens]
    return (
        coloured(prompt, names, tokens),
        plot_token_weights(names, tokens),
        {"headers": ["token", "span", *names], "data": rows},
    )


def _written(
    prompt: str, kind: str, choice: str, weights: Sequence[float], span: int
) -> tuple[list[str], list[TracedToken]]:
    if not prompt:
        raise ConfigError("the prompt is empty; write a question such as 7+5*3=")
    members, policy = _members(kind), _policy(kind, choice, weights)
    length = getattr(getattr(policy, "config", None), "span_length", None) or span
    ensemble = EnsembleForCausalLM.from_members(members, policy, span_length=length)
    inputs = ensemble.tokenizer([prompt], return_tensors="pt")
    out = ensemble.generate(**inputs, max_new_tokens=MAX_TOKENS, do_sample=False, return_dict_in_generate=True)
    return short_names(member.name for member in members), trace_tokens(ensemble, out, inputs["input_ids"].shape[1])[0]


def _policy(kind: str, choice: str, weights: Sequence[float]) -> Any:
    if choice == LEARNED:
        return load_demo_policy(kind)  # type: ignore[arg-type]
    if choice == BY_HAND:
        return StaticPolicy([weight + 1e-9 for weight in weights])  # all zero: equal
    return "entropy" if choice == CERTAIN else None


@cache
def _members(kind: str) -> list[Member]:
    return load_demo_members(kind)  # type: ignore[arg-type]


def coloured(prompt: str, names: Sequence[str], tokens: Sequence[TracedToken]) -> str:
    """HTML in which every token has the colour of its carrier, and its numbers as a tooltip."""
    legend = "&ensp;".join(
        f'<span style="color:{colour_of(i)}">&#9632;</span> {html.escape(name)}' for i, name in enumerate(names)
    )
    spans = "".join(_token(names, token) for token in tokens)
    body = f'<div style="font: 1.3em monospace; white-space: pre-wrap">{html.escape(prompt)}{spans}</div>'
    return f"<p>{legend}</p>{body}"


def _token(names: Sequence[str], token: TracedToken) -> str:
    said = [f"{token.text!r}, span {token.span}"]
    for name, weight, logp in zip(names, token.weights, token.logps, strict=True):
        shown = "did not run" if math.isnan(logp) else "cannot say it" if math.isinf(logp) else f"{logp:.2f} nats"
        said.append(f"{name}: weight {weight:.2f}, {shown}")
    colour = colour_of(token.carrier)
    style = f"color:{colour}; border-bottom: 2px solid {colour}40"
    return (
        f'<span title="{html.escape(chr(10).join(said), quote=True)}" style="{style}">{html.escape(token.text)}</span>'
    )
