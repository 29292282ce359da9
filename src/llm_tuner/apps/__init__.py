"""Faces: parse, call one function of a lower room, render. Nothing is decided here."""
