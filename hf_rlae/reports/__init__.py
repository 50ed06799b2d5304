"""Reports on a completion that members wrote together: tokens, tables, pictures, files."""

from hf_rlae.reports.member_names import short_names
from hf_rlae.reports.member_table import completion_mask, member_table
from hf_rlae.reports.pictures import colour_of, plot_token_weights, save_figure
from hf_rlae.reports.progress import TokenCounter
from hf_rlae.reports.tokens import TracedToken, live_token, trace_tokens, write_trace
from hf_rlae.reports.weights_table import carrier_text, legend, span_table, style_of

__all__ = [
    "TokenCounter",
    "TracedToken",
    "carrier_text",
    "colour_of",
    "completion_mask",
    "legend",
    "live_token",
    "member_table",
    "plot_token_weights",
    "save_figure",
    "short_names",
    "span_table",
    "style_of",
    "trace_tokens",
    "write_trace",
]
