// SPDX-License-Identifier: MIT

import java.net.InetAddress;

/** Look-ups from many threads while the virtual machine uses its own SIGSEGV handler for null pointers and stack overflows. */
public class Hazard {
    static int depth(int n) { return depth(n + 1) + 1; }
    static volatile boolean stop;
    static int caught, overflows;

    public static void main(String[] args) throws Exception {
        java.security.Security.setProperty("networkaddress.cache.ttl", "0");
        Thread storm = new Thread(() -> {
            Object[] none = new Object[1];
            while (!stop) {
                try { none[0].hashCode(); } catch (NullPointerException e) { caught++; }
                if (caught % 1000 == 0) {
                    try { depth(0); } catch (StackOverflowError e) { overflows++; }
                    System.gc();
                }
            }
        });
        storm.start();
        Thread[] threads = new Thread[4];
        int[] wrong = new int[1];
        for (int i = 0; i < threads.length; i++) {
            threads[i] = new Thread(() -> {
                for (int n = 0; n < 750; n++) {
                    try {
                        if (!InetAddress.getByName("bkero").getHostAddress().equals("10.11.0.2")) wrong[0]++;
                    } catch (Exception e) { wrong[0]++; }
                }
            });
            threads[i].start();
        }
        for (Thread t : threads) t.join();
        stop = true;
        storm.join();
        System.out.println("3000 look-ups, " + wrong[0] + " wrong");
        if (wrong[0] != 0 || overflows == 0) System.exit(1);
    }
}
