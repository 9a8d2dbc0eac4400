"""Imported as ``polyfm.domains``."""

if __name__ != "polyfm.domains":
    # A notebook or script started in the checkout's root would otherwise load every class a second time.
    raise ImportError(f"import polyfm.domains, not {__name__}")
