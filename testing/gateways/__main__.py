"""Makes all gateways and engines: `python -m testing.gateways`."""

import sys

from testing.gateways.environment import (
    DEBIAN_PACKAGES,
    PYTHON_PACKAGES,
    GatewayUnavailableError,
    folder_of,
    prepare_gateway,
)


def main() -> int:
    missing = 0
    for name in (*DEBIAN_PACKAGES, *PYTHON_PACKAGES):
        try:
            prepare_gateway(name)
            print(f"{name}: {folder_of(name)}")
        except GatewayUnavailableError as error:
            print(error, file=sys.stderr)
            missing += 1
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
