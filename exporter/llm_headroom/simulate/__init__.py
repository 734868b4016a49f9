"""Simulated inference engines in virtual time: for the demo, for tests, and for judging signals without a GPU.

`hardware` states what a step costs, `traffic` makes requests, `batching` is one vLLM or SGLang engine (with
`kv_pool` and `measures`), `ollama_model` is an Ollama server. Nothing here opens a socket or reads a clock.
"""
