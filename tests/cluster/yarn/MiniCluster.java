import java.io.File;
import java.io.FileOutputStream;
import java.io.OutputStream;
import org.apache.hadoop.conf.Configuration;
import org.apache.hadoop.hdfs.HdfsConfiguration;
import org.apache.hadoop.hdfs.MiniDFSCluster;
import org.apache.hadoop.yarn.conf.YarnConfiguration;
import org.apache.hadoop.yarn.server.MiniYARNCluster;

/**
 * An HDFS of one data node and a YARN of two node managers, all in this process: MiniCluster FOLDER.
 *
 * <p>Writes core-site.xml and yarn-site.xml into FOLDER, prints "READY", the URI of the HDFS and the address of
 * its web server, and ends when its stdin closes. What it stores lies below the working directory.
 */
public class MiniCluster {
    private static final String[] OF_CLIENTS = {
        YarnConfiguration.RM_ADDRESS, YarnConfiguration.RM_SCHEDULER_ADDRESS, YarnConfiguration.RM_WEBAPP_ADDRESS,
    };
    private static final int KILLS = 1_000; // a container can be started while others are killed

    public static void main(String[] arguments) throws Exception {
        Thread watch = new Thread(MiniCluster::endWithStdin);
        watch.setDaemon(true);
        watch.start();

        Configuration ofHdfs = new HdfsConfiguration();
        ofHdfs.set(MiniDFSCluster.HDFS_MINIDFS_BASEDIR, new File("hdfs").getAbsolutePath());
        MiniDFSCluster hdfs = new MiniDFSCluster.Builder(ofHdfs).numDataNodes(1).build();
        String uri = hdfs.getURI().toString();

        MiniYARNCluster yarn = new MiniYARNCluster("yarn", 1, 2, 1, 1);
        yarn.init(ofYarn(uri));
        yarn.start();
        yarn.waitForNodeManagersToConnect(600_000);

        // Only what a client asks for: of the rest some names classes that only tests have.
        Configuration core = new Configuration(false);
        core.set("fs.defaultFS", uri);
        core.set("dfs.replication", "1");
        write(core, new File(arguments[0], "core-site.xml"));
        Configuration site = new Configuration(false);
        for (String name : OF_CLIENTS) {
            site.set(name, yarn.getConfig().get(name));
        }
        write(site, new File(arguments[0], "yarn-site.xml"));
        System.out.println("READY " + uri + " " + hdfs.getHttpUri(0));
    }

    private static Configuration ofYarn(String uri) {
        Configuration settings = new YarnConfiguration();
        settings.set("fs.defaultFS", uri);
        // Of each node manager; the usual key is ignored. A job of two workers in cluster mode takes 9 GB of both.
        settings.setInt("yarn.minicluster.yarn.nodemanager.resource.memory-mb", 9 * 1024);
        settings.setInt("yarn.nodemanager.resource.cpu-vcores", 4);
        settings.setBoolean("yarn.nodemanager.vmem-check-enabled", false);
        settings.setFloat("yarn.nodemanager.disk-health-checker.max-disk-utilization-per-disk-percentage", 99);
        settings.setInt("yarn.resourcemanager.nodemanagers.heartbeat-interval-ms", 200);
        String scheduler = "yarn.scheduler.capacity.";
        settings.set(scheduler + "root.queues", "default");
        settings.set(scheduler + "root.default.capacity", "100");
        settings.set(scheduler + "root.default.maximum-capacity", "100");
        settings.set(scheduler + "root.default.user-limit-factor", "1");
        settings.set(scheduler + "root.default.state", "RUNNING");
        settings.set(scheduler + "root.default.acl_submit_applications", "*");
        settings.set(scheduler + "maximum-am-resource-percent", "0.9");
        settings.set(scheduler + "node-locality-delay", "-1");
        return settings;
    }

    private static void write(Configuration settings, File file) throws Exception {
        try (OutputStream stream = new FileOutputStream(file)) {
            settings.writeXml(stream);
        }
    }

    /** Whoever has started this holds the other end of stdin, which the kernel closes with them. */
    private static void endWithStdin() {
        try {
            while (System.in.read() >= 0) {}
        } catch (Exception error) {
            // As good as closed.
        }
        // YARN's own way takes its time, and leaves containers behind when that is not given.
        for (int times = 0; times < KILLS && ProcessHandle.current().descendants().count() > 0; times++) {
            ProcessHandle.current().descendants().forEach(ProcessHandle::destroyForcibly);
        }
        Runtime.getRuntime().halt(0); // nobody needs the shutdown hooks of HDFS
    }
}
