"""An OpenAI-compatible server for any decoding method, and a client that measures such servers."""
