"""What the user starts: the head, the decode loop, dispatch, Ray and the commands."""

import workers as workers  # its settings of the environment, before torch is loaded
