"""Imported as ``polyfm.shared``."""

if __name__ != "polyfm.shared":
    # A notebook or script started in the checkout's root would otherwise load every class a second time.
    raise ImportError(f"import polyfm.shared, not {__name__}")
