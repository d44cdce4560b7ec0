"""How many SynthRooms images one core renders in a second (process time, one thread)."""

import os

for _variable in ('OMP_NUM_THREADS', 'OPENBLAS_NUM_THREADS', 'MKL_NUM_THREADS'):
    os.environ[_variable] = '1'  # read when NumPy and torch are first imported

import argparse  # noqa: E402
import time  # noqa: E402

from mmrepmtl.datasets.synth_rooms import SynthRoomsDataset  # noqa: E402


def main() -> None:
    """Renders rounds of different rooms, and prints the rate of each and of all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--size', type=int, nargs=2, default=(96, 128), metavar=('HEIGHT', 'WIDTH'))
    parser.add_argument('--num-images', type=int, default=200, help='images per round')
    parser.add_argument('--rounds', type=int, default=5)
    parser.add_argument('--seed', type=int, default=0)
    args = parser.parse_args()
    dataset = SynthRoomsDataset(size=args.size, num_samples=args.num_images * args.rounds + 1, seed=args.seed)
    dataset[args.num_images * args.rounds]  # makes the noise tile
    times = []
    for number in range(args.rounds):
        start = time.process_time()
        for index in range(number * args.num_images, (number + 1) * args.num_images):
            dataset[index]
        times.append(time.process_time() - start)
        print(f'round {number + 1}: {args.num_images / times[-1]:.1f} images/s per core')
    height, width = args.size
    total = args.num_images * args.rounds
    print(
        f'{height}x{width}: {total / sum(times):.1f} images/s per core, {1000 * sum(times) / total:.2f} ms each '
        f'({total} images, sampling, rendering and checks included)'
    )


if __name__ == '__main__':
    main()
