from typing import final

@final
class Runs: ...
