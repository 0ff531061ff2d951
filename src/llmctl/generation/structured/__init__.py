"""Answers in a required form: JSON schemas, regular expressions, choices and grammars."""
