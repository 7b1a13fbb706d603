"""Interface: how a model is asked: request, stream of answers, and the HTTP face and client that speak OpenAI's API."""
