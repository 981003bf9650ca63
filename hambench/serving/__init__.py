"""Any decoding method behind an OpenAI-compatible server, and the client that measures such servers."""
