"""A Space of the Hub, as it is: the page of `hf-rlae demo --web`."""

from hf_rlae.cli.web_demo import build_demo

build_demo().launch()
