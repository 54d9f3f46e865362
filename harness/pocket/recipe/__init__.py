"""How the embedded weights were made. No run imports anything from here."""
